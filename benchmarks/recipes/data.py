"""Images to train on and to test with: small ones in memory, large ones from a folder, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from benchmarks.cifar import accuracy, load_images

_PAD = 4


Pair = tuple[Tensor, Tensor]


class Images(Protocol):
    """A training and a test split.

    Attributes:
        classes: how many numbers a network gives: for an image, or for a pixel.
        sample: an input.
        loss: of a network's output and the targets of a batch; its parameters are trained with the network.
    """

    classes: int
    sample: Tensor
    loss: nn.Module

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

    loss: nn.Module

    def __init__(self, path: Path, train: int | None, tests: int | None) -> None:
        self._images, self._labels = load_images(path, "train", train)
        self._tests, self._answers = load_images(path, "test", tests)
        self._tests = self._tests.contiguous(memory_format=torch.channels_last)
        self.classes, self.loss = int(self._labels.max()) + 1, nn.CrossEntropyLoss()
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
        self.loss: nn.Module = nn.CrossEntropyLoss()
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


class Masks(SmallImages):
    """The same images, and of each pixel whether it is ground (0), an object (1) or on an object's edge (2).

    What belongs to an object is not annotated but computed from the image: what differs in colour from the image's
    border by more than the mean over the image. So a network has to look at the whole image to label a pixel.
    """

    def __init__(self, path: Path, train: int | None, tests: int | None) -> None:
        super().__init__(path, train, tests)
        self.classes = 3

    def batches(self, size: int, seed: int) -> Iterator[Pair]:
        """See Images."""
        return ((images, masks_of(images)) for images, _ in super().batches(size, seed))

    def calibration(self, count: int) -> list[Pair]:
        """See Images."""
        return [(images, masks_of(images)) for images, _ in super().calibration(count)]

    @torch.no_grad()
    def accuracy(self, network: nn.Module) -> float:
        """The mean over the classes of intersection over union, on all test pixels together."""
        training = network.training
        network.eval()
        found = torch.cat([network(part).argmax(1) for part in self._tests.split(64)])
        network.train(training)
        masks = masks_of(self._tests)
        pairs = [(found == label, masks == label) for label in range(self.classes)]
        return sum(float((a & b).sum() / (a | b).sum()) for a, b in pairs) / self.classes


def masks_of(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) to classes of pixels (N, H, W): ground, object, edge of an object (see :class:`Masks`)."""
    border = torch.cat((images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]), 2)
    distance = (images - border.mean(2)[:, :, None, None]).norm(dim=1, keepdim=True)
    distance = F.avg_pool2d(distance, 3, 1, 1, count_include_pad=False)
    inside = (distance > distance.mean((2, 3), keepdim=True)).float()
    outer = F.max_pool2d(inside, 3, 1, 1)
    return torch.where(outer > inside, 2, inside.long())[:, 0]


_SEEN = 0.7
_FOLDS = 10


class Identities(SmallImages):
    """Pairs of images of the same or of two classes, where a class stands for a person.

    A network learns embeddings on the first 70 % of the classes of the training split. Its accuracy is how many pairs
    of test images of the other classes are told right by a threshold on the cosine of their embeddings; for each of
    ten folds the threshold is that which is best on the others, as for the LFW data.
    """

    def __init__(self, path: Path, size: int, embedding: int, train: int | None, tests: int | None) -> None:
        super().__init__(path, train, tests)
        self._size, seen = size, round(_SEEN * self.classes)
        known, new = self._labels < seen, self._answers >= seen
        self._images, self._labels = self._images[known], self._labels[known]
        self._tests, self._answers = self._tests[new], self._answers[new]
        self.classes, self.loss = embedding, Margin(embedding, seen)
        self.sample = self._sized(self._images[:2])

    def batches(self, size: int, seed: int) -> Iterator[Pair]:
        """See Images."""
        return ((self._sized(images), labels) for images, labels in super().batches(size, seed))

    def calibration(self, count: int) -> list[Pair]:
        """See Images."""
        return [(self._sized(images), labels) for images, labels in super().calibration(count)]

    @torch.no_grad()
    def accuracy(self, network: nn.Module) -> float:
        """The share of pairs told right, on the mean over the folds."""
        training = network.training
        network.eval()
        found = F.normalize(torch.cat([network(self._sized(part)) for part in self._tests.split(32)]))
        network.train(training)
        left, right = pairs_of(self._answers)
        return verified((found[left] * found[right]).sum(1), self._answers[left] == self._answers[right])

    def _sized(self, images: Tensor) -> Tensor:
        sized = F.interpolate(images, (self._size, self._size), mode="bilinear")
        return sized.contiguous(memory_format=torch.channels_last)


class Margin(nn.Module):
    """The additive margin loss of CosFace (Wang et al. 2018, arXiv 1801.09414) on embeddings ``(N, size)``."""

    def __init__(self, size: int, identities: int, scale: float = 16.0, margin: float = 0.2) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(identities, size))
        self.scale, self.margin = scale, margin

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The mean over the batch."""
        cosines = F.linear(F.normalize(embeddings), F.normalize(self.centres))
        return F.cross_entropy(self.scale * (cosines - self.margin * F.one_hot(labels, len(self.centres))), labels)


def pairs_of(labels: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two lists of indices: every image with a random other one of its class, and with a random one of another."""
    generator = torch.Generator().manual_seed(seed)
    right: list[Tensor] = []
    for same in (True, False):
        fits = (labels[:, None] == labels) == same
        fits.fill_diagonal_(False)
        right.append(torch.multinomial(fits.float(), 1, generator=generator)[:, 0])
    every = torch.arange(len(labels))
    # Alternately of one class and of two, so that every fold has both.
    return torch.stack((every, every), 1).flatten(), torch.stack(right, 1).flatten()


def verified(cosines: Tensor, same: Tensor, folds: int = _FOLDS) -> float:
    """The mean over the folds of the share of pairs on the right side of a threshold chosen on the other folds."""
    numbers = torch.arange(len(same)) * folds // len(same)
    shares = []
    for fold in range(folds):
        here = numbers == fold
        ordered = cosines[~here].sort().values
        levels = (ordered[1:] + ordered[:-1]) / 2
        right = ((cosines[~here] >= levels[:, None]) == same[~here]).float().mean(1)
        shares.append(((cosines[here] >= levels[right.argmax()]) == same[here]).float().mean())
    return float(torch.stack(shares).mean())
