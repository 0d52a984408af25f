"""Batches of calibration data from a folder of files, in the order of their names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from fxprune.errors import SampleError

__all__ = ["BatchFolder"]

_ENDINGS = (".safetensors", ".pt", ".pth")


class BatchFolder:
    """Every file of a folder as a batch; it can be iterated again and again.

    A ``.safetensors`` file holds the tensor ``input`` and perhaps ``target``, or the model's keyword arguments by name.
    A ``.pt`` file holds what a data loader would yield; it is read with ``weights_only``, so no pickle is run.

    Raises:
        SampleError: the folder has no such file, or a file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise SampleError(f"there is no folder {folder} of calibration batches")
        self._files = sorted(file for file in folder.iterdir() if file.suffix in _ENDINGS)
        if not self._files:
            raise SampleError(f"{folder} holds no batches: one file each, {', '.join(_ENDINGS)}")

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[Any]:
        for file in self._files:
            yield _batch(file)


def _batch(file: Path) -> Any:
    try:
        if file.suffix != ".safetensors":
            return torch.load(file, map_location="cpu", weights_only=True)
        tensors = safetensors.torch.load_file(file)
    except Exception as error:  # both readers raise many types
        raise SampleError(f"{file} is no batch that can be read safely ({type(error).__name__})") from error
    if set(tensors) == {"input", "target"}:
        return tensors["input"], tensors["target"]
    return tensors["input"] if set(tensors) == {"input"} else tensors
