"""Images to train on and to test with: small ones in memory, large ones from a folder, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from benchmarks.cifar import accuracy, load_images

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


_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TEST_NAMES = ("test", "val")
Pair = tuple[Tensor, Tensor]


class FolderImages:
    """An ImageFolder root with ``train`` and ``test`` (or ``val``), as ImageNet and LFW are laid out."""

    def __init__(self, path: Path, size: int, train: int | None, tests: int | None, workers: int = 0) -> None:
        end = [T.ToTensor(), T.Normalize(_MEAN, _STD)]
        whole = T.Compose([T.Resize(size * 8 // 7), T.CenterCrop(size), *end])
        augmented = T.Compose([T.RandomResizedCrop(size), T.RandomHorizontalFlip(), *end])
        self._train = _first(ImageFolder(path / "train", augmented), train)
        self._plain = _first(ImageFolder(path / "train", whole), train)
        named = next((path / name for name in _TEST_NAMES if (path / name).is_dir()), path / _TEST_NAMES[0])
        found = ImageFolder(named, whole)
        self._tests, self.classes, self._workers = _first(found, tests), len(found.classes), workers
        self.sample = torch.randn(2, 3, size, size).contiguous(memory_format=torch.channels_last)

    def length(self) -> int:
        """See Images."""
        return len(self._train)

    def batches(self, size: int, seed: int) -> Iterator[Pair]:
        """See Images: a random part of each image, scaled and flipped."""
        torch.manual_seed(seed)
        order = torch.Generator().manual_seed(seed)
        yield from self._loaded(self._train, size, shuffle=True, generator=order, drop_last=True)

    def calibration(self, count: int) -> list[Pair]:
        """See Images."""
        return list(self._loaded(_first(self._plain, count), 32))

    @torch.no_grad()
    def accuracy(self, network: torch.nn.Module) -> float:
        """See Images."""
        training = network.training
        network.eval()
        right = sum(int((network(x).argmax(1) == y).sum()) for x, y in self._loaded(self._tests, 64))
        network.train(training)
        return right / len(self._tests)

    def _loaded(
        self,
        data: Dataset[Pair],
        size: int,
        *,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        drop_last: bool = False,
    ) -> DataLoader[Pair]:
        return DataLoader(data, size, shuffle, num_workers=self._workers, generator=generator, drop_last=drop_last)


def _first(data: Dataset[Pair], count: int | None) -> Subset[Pair]:
    """So many, spread over the classes."""
    length = len(data)  # type: ignore[arg-type]
    count = length if count is None else min(count, length)
    return Subset(data, [index * length // count for index in range(count)])


_SIDE, _SHAPES = 48, 4
_NOISE = 0.6


class Masks:
    """Pictures (3, 48, 48), and for each pixel 0 (ground), 1 (disc) or 2 (square)."""

    classes = 3

    def __init__(self, train: int = 1024, tests: int = 128, seed: int = 0) -> None:
        self._train, self._tests = generated(train, seed), generated(tests, seed + 1)
        self.sample = self._train[0][:2]

    def length(self) -> int:
        """See Images."""
        return len(self._train[1])

    def batches(self, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """See Images."""
        images, masks = self._train
        for index in torch.randperm(len(masks), generator=torch.Generator().manual_seed(seed)).split(size):
            if len(index) == min(size, len(masks)):
                yield images[index], masks[index]

    def calibration(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """See Images."""
        images, masks = self._train
        return list(zip(images[:count].split(32), masks[:count].split(32), strict=True))

    @torch.no_grad()
    def accuracy(self, network: nn.Module) -> float:
        """The mean over the classes of intersection over union, on all test pixels together."""
        training = network.training
        network.eval()
        images, masks = self._tests
        found = torch.cat([network(part).argmax(1) for part in images.split(32)])
        network.train(training)
        pairs = [(found == label, masks == label) for label in range(self.classes)]
        return sum(float((a & b).sum() / (a | b).sum()) for a, b in pairs) / self.classes


def generated(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures (count, 3, 48, 48) and masks (count, 48, 48)."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(_SIDE).view(-1, 1)
    masks = torch.zeros(count, _SIDE, _SIDE, dtype=torch.long)
    images = _NOISE * torch.randn(count, 3, _SIDE, _SIDE, generator=generator)
    for image, mask in zip(images, masks, strict=True):
        for number in range(_SHAPES):
            y, x = torch.randint(6, _SIDE - 6, (2,), generator=generator).tolist()
            radius = int(torch.randint(4, 9, (), generator=generator))
            down, right = rows - y, rows.T - x
            disc = number % 2 == 0
            inside = down**2 + right**2 <= radius**2 if disc else (down.abs() <= radius) & (right.abs() <= radius)
            mask[inside] = 1 if disc else 2
            image[:, inside] += torch.randn(3, 1, generator=generator)
    return images, masks
