"""A folder of files that appears whole or not at all, and a manifest that tells whether it is as it was written."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fxprune.errors import ArtefactError

__all__ = ["MANIFEST", "read_json", "read_manifest", "replace_folder", "write_json"]

MANIFEST = "manifest.json"
FORMAT = "fxprune"
FORMAT_VERSION = 2
# Arguments of renameat2: paths are relative to the working folder, and the two change places.
_HERE, _EXCHANGE = -100, 2


def replace_folder(path: Path, write: Callable[[Path], None], about: dict[str, Any]) -> None:
    """Let ``write`` fill a new folder and put it at ``path``; on any failure what was there before stays.

    ``about`` goes into the manifest, next to the size and SHA-256 of every file.

    Raises:
        ArtefactError: ``path`` is a file, or a folder with files that were not written by this function.
        OSError: the disk refuses.
    """
    path = path.resolve()
    _check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.parent / f".{path.name}.saving-{secrets.token_hex(4)}"
    scratch.mkdir()
    try:
        write(scratch)
        _write_manifest(scratch, about)
        for file in scratch.iterdir():
            _flush(file)
        _flush(scratch)
        _swap(scratch, path)
        _flush(path.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check_replaceable(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise ArtefactError(f"{path} is a file: give a folder to save to")
    found = {file.name for file in path.iterdir()}
    ours = set()
    if MANIFEST in found:
        ours = {MANIFEST, *read_manifest(path, verify=False)["files"]}
    if found - ours:
        raise ArtefactError(
            f"{path} holds files that were not saved by fxprune ({', '.join(sorted(found - ours)[:3])}): "
            "move them or choose another folder"
        )


def _swap(scratch: Path, path: Path) -> None:
    """Put ``scratch`` at ``path``: in one step where the system can, else setting an older folder aside first."""
    if not path.exists():
        scratch.rename(path)
        return
    if _exchanged(scratch, path):
        return  # the older folder is the scratch now
    aside = scratch.with_name(scratch.name.replace(".saving-", ".old-"))
    path.rename(aside)
    try:
        scratch.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _exchanged(left: Path, right: Path) -> bool:
    """Let two folders change places at once, so that a killed process leaves one of them (Linux's ``renameat2``)."""
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
        # Some file systems cannot flush a folder; the rename is then as safe as they make it.
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def _write_manifest(folder: Path, about: dict[str, Any]) -> None:
    files = {file.name: _fingerprint(file) for file in sorted(folder.iterdir())}
    write_json(folder / MANIFEST, {"format": FORMAT, "version": FORMAT_VERSION, **about, "files": files})


def _fingerprint(file: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return {"bytes": file.stat().st_size, "sha256": digest.hexdigest()}


def read_manifest(path: Path, *, verify: bool = True) -> dict[str, Any]:
    """The manifest of a saved folder, every file compared with it if ``verify``.

    Raises:
        ArtefactError: there is no such folder, it was not saved by fxprune, or a file is missing or changed.
    """
    if not (path / MANIFEST).is_file():
        raise ArtefactError(f"{path} is not a folder saved by fxprune: it has no {MANIFEST}")
    manifest = read_json(path / MANIFEST)
    if (
        not isinstance(manifest, dict)
        or manifest.get("format") != FORMAT
        or not isinstance(manifest.get("files"), dict)
    ):
        raise ArtefactError(f"{path / MANIFEST} is not a manifest of fxprune")
    if manifest.get("version") != FORMAT_VERSION:
        raise ArtefactError(
            f"{path} has format version {manifest.get('version')!r:.40}, this fxprune reads {FORMAT_VERSION}: "
            "load it with the version of fxprune that saved it"
        )
    for name, expected in manifest["files"].items() if verify else ():
        _check_file(path, name, expected)
    return manifest


def _check_file(path: Path, name: str, expected: Any) -> None:
    if name in (".", "..") or "/" in name or "\\" in name or not _is_file(path / name):
        raise ArtefactError(f"{path} is incomplete: {name!r:.80} is missing")
    if _fingerprint(path / name) != expected:
        raise ArtefactError(f"{path / name} was changed or cut short after it was saved: save the network again")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def write_json(file: Path, data: dict[str, Any]) -> None:
    """Write data as JSON, each entry of a top-level list on a line of its own so that files can be compared."""
    parts = [f"{json.dumps(key)}: {_dump(value)}" for key, value in data.items()]
    file.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def _dump(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n  " + ",\n  ".join(json.dumps(item, allow_nan=False) for item in value) + "\n]"
    if isinstance(value, dict) and value:
        inner = (f"{json.dumps(key)}: {json.dumps(item, allow_nan=False)}" for key, item in value.items())
        return "{\n  " + ",\n  ".join(inner) + "\n}"
    return json.dumps(value, allow_nan=False)


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        ArtefactError: it is missing or is not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtefactError(f"{file.parent} is incomplete: {file.name} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtefactError(f"{file} cannot be read: {error}") from error
