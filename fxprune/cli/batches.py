"""Calibration data of the command line: a folder of images, or of files with a batch each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from fxprune.capture.samples import Sample
from fxprune.cli.sources import torchvision_part
from fxprune.errors import SampleError

_ENDINGS = (".safetensors", ".pt", ".pth")
_BATCH, _MOST_IMAGES = 32, 1024


_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def batches_of(folder: Path, sample: Any) -> Iterable[Any]:
    """The batches of a folder: images at the size of the sample where it holds any, else those that its files hold.

    Raises:
        SampleError: there is nothing of either kind, or the network takes no images.
    """
    if folder.is_dir():
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _IMAGES)
        if files:
            return ImageBatches(files, Sample.from_input(sample).tensors)
    return BatchFolder(folder)


class ImageBatches:
    """Images as a network takes them, 32 a batch, with the number of their folder as target; can be iterated again.

    Each is brought to 8/7 of the sample's size by its shorter edge, cut to its middle, and scaled as for
    ImageNet. Of more than 1,024 files every so manyth is read.

    Raises:
        SampleError: the sample is no batch of images of one or three colours, or a file is no image.
    """

    def __init__(self, files: list[Path], tensors: list[torch.Tensor]) -> None:
        shape = tuple(tensors[0].shape) if len(tensors) == 1 else ()
        if len(shape) != 4 or shape[1] not in (1, 3):
            raise SampleError("calibration is a folder of images, and the network takes something else: give batches")
        self._colours, self._size = shape[1], shape[2:]
        self._files = files[:: -(-len(files) // _MOST_IMAGES)]
        self._classes = sorted({file.parent for file in files})

    def __len__(self) -> int:
        return (len(self._files) + _BATCH - 1) // _BATCH

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self._files), _BATCH):
            files = self._files[start : start + _BATCH]
            targets = torch.tensor([self._classes.index(file.parent) for file in files])
            yield torch.stack([self._read(file) for file in files]), targets

    def _read(self, file: Path) -> torch.Tensor:
        from PIL import Image

        functional = torchvision_part("transforms.functional")
        try:
            with Image.open(file) as opened:
                image = functional.to_tensor(opened.convert("RGB" if self._colours == 3 else "L"))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise SampleError(f"{file} is no image that can be read ({type(error).__name__})") from error
        height, width = self._size
        scale = max(height / image.shape[1], width / image.shape[2]) * 8 / 7
        near = [max(round(scale * n), least) for n, least in zip(image.shape[1:], self._size, strict=True)]
        image = functional.center_crop(functional.resize(image, near, antialias=True), [height, width])
        normal: torch.Tensor = functional.normalize(image, _MEAN[: self._colours], _STD[: self._colours])
        return normal


class BatchFolder:
    """Every file of a folder as a batch; it can be iterated again and again.

    A ``.safetensors`` file holds the tensor ``input`` and perhaps ``target``, or the model's keyword arguments by name.
    A ``.pt`` file holds what a data loader would yield; it is read with ``weights_only``, so no pickle is run.

    Raises:
        SampleError: the folder has no such file, or a file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise SampleError(f"there is no folder {folder} of images or batches")
        self._files = sorted(file for file in folder.iterdir() if file.suffix in _ENDINGS)
        if not self._files:
            raise SampleError(f"{folder} holds neither images nor batches, one file each, {', '.join(_ENDINGS)}")

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
