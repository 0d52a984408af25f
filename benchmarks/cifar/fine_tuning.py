"""A short training on CIFAR images: a fixed number of steps over shuffled, shifted and mirrored batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune

__all__ = ["Budget", "ShiftedImages", "distilled", "fine_tuned"]


@dataclass(frozen=True)
class Budget:
    """What every network may spend.

    Attributes:
        steps: of stochastic gradient descent with momentum 0.9 and a cosine schedule.
        batch_size: images of a step.
        learning_rate: at the first step.
        weight_decay: of all parameters.
    """

    steps: int = 150
    batch_size: int = 64
    learning_rate: float = 0.01
    weight_decay: float = 1e-4


class ShiftedImages:
    """Batches of images (N, 3, 32, 32), shifted by up to four pixels and mirrored, with labels; shuffled every pass."""

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int) -> None:
        self.images, self.labels, self.batch_size = images, labels, batch_size

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.labels))
        for chosen in order[: len(self) * self.batch_size].split(self.batch_size):
            yield self._moved(self.images[chosen]), self.labels[chosen]

    def _moved(self, images: Tensor) -> Tensor:
        padded = F.pad(images, (4, 4, 4, 4))
        down, right = torch.randint(0, 9, (2,)).tolist()
        cut = padded[:, :, down : down + 32, right : right + 32]
        mirrored = torch.rand(len(images)) < 0.5
        cut = torch.where(mirrored.view(-1, 1, 1, 1), cut.flip(3), cut)
        return cut.contiguous(memory_format=torch.channels_last)


def fine_tuned(network: nn.Module, teacher: nn.Module, data: ShiftedImages, budget: Budget, seed: int) -> nn.Module:
    """A copy trained on labels alone; ``teacher`` is not looked at, and stands in for an absent one."""
    return _trained(network, _Silent(), data, budget, seed, lambda student, _, labels: F.cross_entropy(student, labels))


def distilled(network: nn.Module, teacher: nn.Module, data: ShiftedImages, budget: Budget, seed: int) -> nn.Module:
    """A copy trained towards the teacher's outputs, with labels at their default weight."""
    return _trained(network, teacher, data, budget, seed, fxprune.distillation.SoftTargets())


class _Silent(nn.Module):
    """A teacher that says nothing and costs nothing."""

    def forward(self, images: Tensor) -> Tensor:
        return images.new_zeros(())


def _trained(
    network: nn.Module, teacher: nn.Module, data: ShiftedImages, budget: Budget, seed: int, loss: object
) -> nn.Module:
    found = fxprune.distill(
        network,
        teacher,
        data,
        steps=budget.steps,
        loss=loss,  # type: ignore[arg-type]
        learning_rate=budget.learning_rate,
        weight_decay=budget.weight_decay,
        seed=seed,
    )
    return found.network
