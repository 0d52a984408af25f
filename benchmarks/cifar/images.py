"""CIFAR images in ImageFolder layout, ``.../SPLIT/CLASS/NAME.jpg``, read from a folder or straight from a zip file."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import torch
from torchvision.io import ImageReadMode, decode_image

_SUFFIXES = (".jpg", ".jpeg", ".png")
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def load_images(path: Path, split: str, limit: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, 32, 32), scaled to [0, 1] and normalised, and class indices (N,) in the order of class names.

    With a ``limit``, so many images spread evenly over the classes.

    Raises:
        FileNotFoundError: there is no such path, or no image of the split in it.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no folder or zip file {path}")
    if path.is_dir():
        names = [str(found.relative_to(path)) for found in path.rglob("*")]
        return _load(path, names, lambda name: (path / name).read_bytes(), split, limit)
    with zipfile.ZipFile(path) as archive:
        return _load(path, archive.namelist(), archive.read, split, limit)


def _load(
    path: Path, names: list[str], read: Callable[[str], bytes], split: str, limit: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    found = sorted(name for name in names if _split_of(name) == split)
    if not found:
        raise FileNotFoundError(f"{path} holds no image like {split}/CLASS/NAME.jpg")
    classes = {name: index for index, name in enumerate(sorted({_class_of(name) for name in found}))}
    chosen = _spread(found, limit)
    pixels = torch.stack([_decode(read(name)) for name in chosen])
    return _normalised(pixels), torch.tensor([classes[_class_of(name)] for name in chosen])


def _split_of(name: str) -> str:
    parts = PurePosixPath(name).parts
    return parts[-3] if len(parts) >= 3 and name.lower().endswith(_SUFFIXES) else ""


def _class_of(name: str) -> str:
    return PurePosixPath(name).parts[-2]


def _spread(names: list[str], limit: int | None) -> list[str]:
    if limit is None or limit >= len(names):
        return names
    return [names[index * len(names) // limit] for index in range(limit)]


def _decode(data: bytes) -> torch.Tensor:
    pixels: torch.Tensor = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    return pixels


def _normalised(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _STD))
    return (pixels.float() / 255 - mean) / std
