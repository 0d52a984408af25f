"""Images to train on and to test with: small ones in memory, large ones from a folder, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from benchmarks.cifar.accuracy import accuracy
from benchmarks.cifar.images import load_images

_PAD = 4


class Images(Protocol):
    """A training and a test split."""

    classes: int
    sample: Tensor

    def length(self) -> int:
        """How many training images there are."""
        ...

    def batches(self, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of augmented training batches, in an order that the seed gives."""
        ...

    def calibration(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """A few training images as they are."""
        ...

    def accuracy(self, network: torch.nn.Module) -> float:
        """The share of test images whose class a network finds."""
        ...


class SmallImages:
    """Images of 32x32 pixels, from a folder or a zip file, held in memory."""

    def __init__(self, path: Path, train: int | None, tests: int | None) -> None:
        self._images, self._labels = load_images(path, "train", train)
        self._tests, self._answers = load_images(path, "test", tests)
        self._tests = self._tests.contiguous(memory_format=torch.channels_last)
        self.classes = int(self._labels.max()) + 1
        self.sample = self._images[:2].contiguous(memory_format=torch.channels_last)

    def length(self) -> int:
        """See Images."""
        return len(self._labels)

    def batches(self, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """See Images: padded by four pixels, cropped and flipped."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self._labels), generator=generator)
        for index in order.split(size):
            if len(index) == size:
                yield augmented(self._images[index], generator), self._labels[index]

    def calibration(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """See Images: spread over the classes."""
        step = max(1, len(self._labels) // count)
        images = self._images[::step][:count].contiguous(memory_format=torch.channels_last)
        return list(zip(images.split(128), self._labels[::step][:count].split(128), strict=True))

    def accuracy(self, network: torch.nn.Module) -> float:
        """See Images."""
        training = network.training
        found = accuracy(network, self._tests, self._answers)
        network.train(training)
        return found


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (N, C, H, W), each padded by four pixels, cropped to its size again, and one in two mirrored."""
    count, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (_PAD,) * 4)
    top, left = torch.randint(0, 2 * _PAD + 1, (2, count, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    # Advanced indices around a slice put the channels last, which is the memory format that is wanted.
    cut = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return cut.permute(0, 3, 1, 2)
