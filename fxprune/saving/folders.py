"""A folder of files that is written completely or not at all, with a manifest to detect later changes."""

from __future__ import annotations

import ctypes
import glob
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from fxprune.errors import ArtefactError
from fxprune.util.writing import file_errors, remove_abandoned, scratch_folder

MANIFEST = "manifest.json"
FORMAT = "fxprune"
FORMAT_VERSION = 2
# Arguments of renameat2: paths are relative to the working folder, and the two are exchanged.
_HERE, _EXCHANGE = -100, 2
# How often a folder that is being replaced is opened again, and the seconds to wait while there is none.
_TRIES, _PAUSE = 100, 0.02
# The most bytes of a manifest, graph, report or plan; the largest published networks need far fewer.
_LARGEST_TEXT = 1 << 28
# How often a missing folder is looked for.
_LOOKS = 5
# Whether files can be opened relative to an open folder, even if it has been renamed or replaced.
_BY_FOLDER = os.open in os.supports_dir_fd


def replace_folder(path: Path, write: Callable[[Path], None], about: dict[str, Any]) -> None:
    """Let ``write`` fill a new folder and move it to ``path``; on any failure the previous content stays.

    ``about`` is added to the manifest, next to the size and SHA-256 of every file. Raises ArtefactError: ``path`` is a
    file, or a folder with files that were not written by this function; FileError: writing fails.
    """
    with file_errors(f"{path} cannot be written"):
        path = path.resolve()
        _check_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(path, "saving") as scratch:
            write(scratch)
            files = {file.name: _fingerprint(file) for file in sorted(scratch.iterdir())}
            write_json(scratch / MANIFEST, {"format": FORMAT, "version": FORMAT_VERSION, **about, "files": files})
            for file in scratch.iterdir():
                _flush(file)
            _flush(scratch)
            _swap(scratch, path)
            _flush(path.parent)
        remove_abandoned(path)


def _check_replaceable(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise ArtefactError(f"{path} is a file: give a folder to save to")
    found, ours = set(os.listdir(path)), set[str]()
    if MANIFEST in found:
        with open_folder(path, verify=False) as folder:
            found, ours = folder.names(), {MANIFEST, *folder.manifest["files"]}
    if found - ours:
        raise ArtefactError(
            f"{path} holds files that were not saved by fxprune ({', '.join(sorted(found - ours)[:3])}): "
            "move them or choose another folder"
        )


def _swap(scratch: Path, path: Path) -> None:
    """Move ``scratch`` to ``path``: in one step if the system can, else after moving an older folder aside."""
    if path.exists() and _exchanged(scratch, path):
        return  # the older folder is now at ``scratch``
    if not path.exists() or not any(path.iterdir()):
        scratch.rename(path)
        return
    aside = scratch.with_name(scratch.name.replace(".saving-", ".old-"))
    path.rename(aside)
    try:
        scratch.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _exchanged(left: Path, right: Path) -> bool:
    """Exchange two folders atomically, so that a killed process leaves one of them (Linux's ``renameat2``)."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError, TypeError):  # another system, or a C library without it
        return False
    return bool(rename(_HERE, os.fsencode(left), _HERE, os.fsencode(right), _EXCHANGE) == 0)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        # Some file systems cannot flush a folder; the rename is then only as safe as they make it.
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def _fingerprint(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return _fingerprint_of(stream)


def _fingerprint_of(stream: BinaryIO) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    while block := stream.read(1 << 20):
        digest.update(block)
        size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _size(stream: BinaryIO) -> int:
    return os.fstat(stream.fileno()).st_size


def write_json(file: Path, data: dict[str, Any]) -> None:
    """Write data as JSON, each entry of a top-level list on its own line, so that files can be compared."""
    parts = [f"{json.dumps(key)}: {_dump(value)}" for key, value in data.items()]
    file.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def _dump(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n  " + ",\n  ".join(json.dumps(item, allow_nan=False) for item in value) + "\n]"
    if isinstance(value, dict) and value:
        inner = (f"{json.dumps(key)}: {json.dumps(item, allow_nan=False)}" for key, item in value.items())
        return "{\n  " + ",\n  ".join(inner) + "\n}"
    return json.dumps(value, allow_nan=False)


class SavedFolder:
    """A saved folder with open files, checked against its manifest; all files belong to it, even if it is replaced."""

    manifest: dict[str, Any]

    def __init__(self, path: Path, files: ExitStack) -> None:
        self.path = path
        self._files = files
        self._streams: dict[str, BinaryIO] = {}
        self._folder: int | None = None
        if _BY_FOLDER:
            self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            files.callback(os.close, self._folder)

    def read_manifest(self, verify: bool) -> None:
        """Read the manifest; if ``verify``, compare every file with it. Raises ArtefactError: a file was changed."""
        if MANIFEST not in self.names():
            raise ArtefactError(f"{self.path} is not a folder saved by fxprune: it has no {MANIFEST}")
        manifest = self.read_json(MANIFEST)
        known = isinstance(manifest, dict) and manifest.get("format") == FORMAT
        if not known or not isinstance(manifest.get("files"), dict):
            raise ArtefactError(f"{self.path / MANIFEST} is not a manifest of fxprune")
        if manifest.get("version") != FORMAT_VERSION:
            raise ArtefactError(
                f"{self.path} has format version {manifest.get('version')!r:.40}, this fxprune reads {FORMAT_VERSION}: "
                "load it with the version of fxprune that saved it, or prune and save the network again"
            )
        self.manifest = manifest
        for name, expected in manifest["files"].items() if verify else ():
            self._check(name, expected)

    def names(self) -> set[str]:
        """Names of all files in the folder."""
        return set(os.listdir(self.path if self._folder is None else self._folder))

    def is_still_there(self) -> bool:
        """Whether this folder is still the one at its path."""
        if self._folder is None or not self.path.exists():
            return self._folder is None
        return os.path.samestat(os.fstat(self._folder), self.path.stat())

    def read_text(self, name: str) -> str:
        """The content of a UTF-8 text file. Raises ArtefactError: it is missing or not such a file."""
        stream = self._open(name)
        if _size(stream) > _LARGEST_TEXT:
            raise ArtefactError(
                f"{self.path / name} holds more text than any saved network: it was not saved by fxprune"
            )
        try:
            stream.seek(0)
            return stream.read().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ArtefactError(f"{self.path / name} cannot be read: {error}") from error

    def read_json(self, name: str) -> Any:
        """The content of a JSON file. Raises ArtefactError: it is missing or not JSON."""
        text = self.read_text(name)
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArtefactError(f"{self.path / name} cannot be read: {error}") from error

    def location(self, name: str) -> Path:
        """A path through which a library can read an open file."""
        stream = self._open(name)
        stream.seek(0)
        by_number = Path(f"/dev/fd/{stream.fileno()}")
        return by_number if by_number.exists() else self.path / name

    def _check(self, name: str, expected: Any) -> None:
        stream = self._open(name)
        size = expected.get("bytes") if isinstance(expected, dict) else None
        # The size is compared first, because hashing a file of the wrong size could take forever.
        if _size(stream) != size or _fingerprint_of(stream) != expected:
            raise ArtefactError(
                f"{self.path / name} was changed or cut short after it was saved: save the network again"
            )

    def _open(self, name: str) -> BinaryIO:
        if name not in self._streams:
            try:
                if name in ("", ".", "..") or "/" in name or "\\" in name:
                    raise ValueError(name)
                self._streams[name] = self._files.enter_context(self._opened(name))
            except PermissionError as error:
                raise ArtefactError(f"{self.path / name} cannot be read: {error.strerror}") from error
            except (OSError, ValueError) as error:  # ValueError: a name that no file can have
                raise ArtefactError(f"{self.path} is incomplete: {name!r:.80} is missing") from error
        return self._streams[name]

    def _opened(self, name: str) -> BinaryIO:
        # Opening a pipe would block.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        where = self.path / name if self._folder is None else name
        stream = os.fdopen(os.open(where, flags, dir_fd=self._folder), "rb")
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            stream.close()
            raise OSError(f"{name} is no file")
        return stream


@contextmanager
def open_folder(path: Path, *, verify: bool = True) -> Iterator[SavedFolder]:
    """A saved folder, compared with its manifest if ``verify``. Raises ArtefactError: it is not one, or is damaged."""
    with ExitStack() as files:
        yield _opened_whole(path, verify, files)


def _opened_whole(path: Path, verify: bool, files: ExitStack) -> SavedFolder:
    for tries_left in reversed(range(_TRIES)):
        with ExitStack() as attempt:
            try:
                folder = SavedFolder(path, attempt)
            except (OSError, ValueError) as error:
                # It may have been moved aside while it was opened, and be back when this is checked.
                first = tries_left > _TRIES - _LOOKS and isinstance(error, FileNotFoundError)
                if tries_left and (_is_set_aside(path) or (first and path.parent.is_dir())):
                    time.sleep(_PAUSE)
                    continue
                reason = getattr(error, "strerror", None) or error
                raise ArtefactError(
                    f"{path} is not a folder saved by fxprune: it cannot be opened ({reason})"
                ) from error
            try:
                folder.read_manifest(verify)
            except ArtefactError:
                if not tries_left or folder.is_still_there():
                    raise
                continue
            files.push(attempt.pop_all())
            return folder
    raise AssertionError("the last try returns or raises")


def _is_set_aside(path: Path) -> bool:
    """Whether a folder was moved aside a moment ago for a new one that is about to replace it."""
    return path.parent.is_dir() and any(path.parent.glob(f".{glob.escape(path.name)}.old-*"))
