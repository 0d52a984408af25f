"""Images of any size from a folder, read batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

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
