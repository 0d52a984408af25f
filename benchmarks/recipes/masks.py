"""Generated pictures with masks: discs and squares of random colours on noise."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

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
