"""Small networks and loaders whose order and augmentation are random."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import fxprune

CLASSES = 5


class Plain(nn.Module):
    """A residual network without batch norm, so that gradients of half batches average to that of the whole."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = x + F.relu(self.second(x))
        return self.head(self.drop(x.mean((2, 3))))


class Normed(nn.Module):
    """Batch norm whose output is written over by the residual addition."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second, self.after = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        y = self.after(self.second(x))
        y += x
        return self.head(F.relu(y).mean((2, 3)))


class Segmenting(nn.Module):
    """Two maps of class scores, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.out, self.aux = nn.Conv2d(8, CLASSES, 1), nn.Conv2d(8, CLASSES, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.norm(self.body(x)))
        return {"out": self.out(x), "aux": self.aux(x)}


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Images that random noise is added to each time they are read."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = torch.linspace(-1, 1, 3 * 36).reshape(3, 6, 6) * (1 + index % 7) / 4
        return image + 0.1 * torch.randn(3, 6, 6), torch.tensor(index % CLASSES)


def images(count: int) -> Tensor:
    """The same random images at every call."""
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def pair(make: Callable[[], nn.Module] = Plain, ratio: float = 0.4) -> tuple[nn.Module, nn.Module]:
    """A pruned network and the network it was cut from, the same at every call."""
    torch.manual_seed(0)
    model = make().eval()
    return fxprune.compile(model, images(2), ratio, round_to=1, verify=False), model


def shuffled(size: int = 4, count: int = 32) -> DataLoader[tuple[Tensor, ...]]:
    """Images and labels, shuffled every epoch."""
    x = images(count)
    return DataLoader(TensorDataset(x, torch.arange(count) % CLASSES), size, shuffle=True)
