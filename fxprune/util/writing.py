"""Writes files and folders whole or not at all, and removes what killed processes left behind."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fxprune.errors import FileError, FxpruneError, OptionError

_LOCKS = os.name == "posix"  # on other systems, leftovers are never removed
if _LOCKS:
    import fcntl
_PARTS = r"((saving|old|exporting)-[0-9a-f]{8}|[0-9a-f]{8}\.part)"


def checked_path(path: str | os.PathLike[str]) -> Path:
    """The argument as a path. Raises OptionError: it is not the name of a file or folder."""
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise OptionError(f"path must be the name of a file or folder, not a {type(path).__name__}")
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        encoded = b""
    if not encoded or b"\0" in encoded or not os.path.basename(os.path.abspath(text)):
        raise OptionError(f"path must be the name of a file or folder, not {text!r:.80}")
    return Path(text)


@contextmanager
def file_errors(doing: str) -> Iterator[None]:
    """Turn an OSError into a :class:`FileError` that says what was being done."""
    try:
        yield
    except FxpruneError:
        raise
    except OSError as error:
        raise FileError(error.errno, f"{doing}: {error.strerror or error}", error.filename) from error


def write_text(target: Path, text: str) -> None:
    """Write a text file; on any failure the old file stays. Raises FileError: it cannot be written."""
    write_file(target, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def write_file(target: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a new file; on any failure the old file stays. Raises FileError: it cannot be written."""
    with file_errors(f"{target} cannot be written"):
        if not target.name:  # the working folder, or a root
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
        remove_abandoned(target)
        part, lock = _claimed(lambda: target.with_name(f".{target.name}.{secrets.token_hex(4)}.part"), Path.touch)
        try:
            with part.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        finally:
            os.close(lock)


@contextmanager
def scratch_folder(target: Path, purpose: str) -> Iterator[Path]:
    """A new folder beside ``target`` for "saving" or "exporting", removed at the end; old leftovers are removed too."""
    remove_abandoned(target)
    new, lock = _claimed(lambda: target.with_name(f".{target.name}.{purpose}-{secrets.token_hex(4)}"), Path.mkdir)
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)
        os.close(lock)


def _claimed(name: Callable[[], Path], make: Callable[[Path], None]) -> tuple[Path, int]:
    """A new file or folder, and a descriptor that holds its lock: a held lock tells others that it is in use."""
    while True:
        path = name()
        make(path)
        try:
            lock = os.open(path if _LOCKS else os.devnull, os.O_RDONLY)
        except FileNotFoundError:
            continue
        if _lock(lock) is not False and path.exists():
            return path, lock
        os.close(lock)  # another process took it for abandoned just before it was locked


def remove_abandoned(target: Path) -> None:
    """Remove what killed processes left beside ``target``: only names that this module makes and no process locks.

    An old folder that was set aside is removed only once there is a new one in its place.
    """
    pattern = re.compile(rf"\.{re.escape(target.name)}\.{_PARTS}")
    if not _LOCKS or not target.parent.is_dir():
        return
    with os.scandir(target.parent) as found:
        left = [Path(entry.path) for entry in found if pattern.fullmatch(entry.name) and not entry.is_symlink()]
    for path in left:
        # A process that sets a folder aside holds the lock of the new one until that is in its place.
        holder = path.with_name(path.name.replace(".old-", ".saving-"))
        with _held(holder) as free:
            if free and (holder == path or target.exists()):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Whether no other process holds the lock of a file or folder; inside the context, this process holds it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        yield isinstance(error, FileNotFoundError)
        return
    try:
        yield _lock(descriptor) is True
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Take a lock: whether it was free, or None where this system or disk has no locks."""
    if not _LOCKS:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
