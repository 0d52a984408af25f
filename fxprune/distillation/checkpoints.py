"""Checkpoints that appear whole or not at all, and the log of a training, one JSON value a line."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fxprune.errors import DistillationError
from fxprune.util.writing import named, write_text

_VERSION = 1


class Folder:
    """The files of one training: ``checkpoint.pt``, tensors and plain values only, and ``metrics.jsonl``.

    Args:
        path: the folder; it is made where there is none.
        settings: what has to be the same for a run to go on.

    Raises:
        DistillationError: the folder cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.path = named(path)
        self._settings = dict(settings)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DistillationError(f"folder {self.path} cannot be made: {error}") from error

    @property
    def checkpoint(self) -> Path:
        """The file of the last checkpoint."""
        return self.path / "checkpoint.pt"

    @property
    def metrics(self) -> Path:
        """The log."""
        return self.path / "metrics.jsonl"

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint; a process that is killed meanwhile leaves the old one."""
        part = self.path / f".checkpoint.{secrets.token_hex(4)}.part"
        try:
            with part.open("xb") as file:
                torch.save({"version": _VERSION, "settings": self._settings, **state}, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.checkpoint)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint, on the CPU; None where there is none. No code is run by reading it.

        Raises:
            DistillationError: it cannot be read, or comes from a training with other settings.
        """
        if not self.checkpoint.exists():
            return None
        try:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            version, settings = state["version"], state["settings"]
        except Exception as error:  # a damaged file makes torch raise many kinds
            raise DistillationError(
                f"{self.checkpoint} is no checkpoint of fxprune ({type(error).__name__}): move it away to start afresh"
            ) from error
        if version != _VERSION:
            raise DistillationError(f"{self.checkpoint} was written by another version of fxprune: move it away")
        self._check(settings)
        found: dict[str, Any] = state
        return found

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a line to the log."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self, step: int) -> list[dict[str, Any]]:
        """The log's rows up to a step."""
        if not self.metrics.exists():
            return []
        rows = [_parsed(line) for line in self.metrics.read_text(encoding="utf-8").splitlines()]
        return [row for row in rows if row is not None and row["step"] <= step]

    def rewind(self, step: int) -> None:
        """Take rows of later steps out of the log, and away what a killed process left half written."""
        for name in (self.checkpoint.stem, self.metrics.name):
            for part in self.path.glob(f".{name}.*.part"):
                part.unlink()
        if self.metrics.exists():
            write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in self.rows(step)))

    def _check(self, settings: Mapping[str, Any]) -> None:
        for name, value in self._settings.items():
            if settings.get(name) != value:
                raise DistillationError(
                    f"{self.checkpoint} was made with {name}={settings.get(name)!r}, and now it is {value!r}: go on "
                    "with what it was, or give another folder to start afresh"
                )


def _parsed(line: str) -> dict[str, Any] | None:
    """A line of the log; None for one that a killed process left unfinished."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
