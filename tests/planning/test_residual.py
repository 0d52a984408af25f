"""``residual="inner"``: which groups count as crossing an addition."""

from __future__ import annotations

import torch
from torch import nn

import fxprune


class Shifted(nn.Module):
    """Tables are added to one width, another activation to the next, and to the third one that is written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(8, 8) for _ in range(3))
        self.last, self.scale = nn.Linear(8, 3), nn.Parameter(torch.ones(8))
        self.register_buffer("table", torch.rand(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x) + torch.linspace(0, 1, 8) * 2 + self.table.exp() - self.scale.tanh()
        h = self.second(h)
        h = self.third(h + h.relu())
        written = torch.zeros(x.shape[0], 8)
        written[:, :8] = h
        return self.last(h + written)


def test_only_activations_join() -> None:
    graph = fxprune.analyze(Shifted(), torch.randn(2, 8))
    assert {group.name: group.crosses_add for group in graph.groups} == {"first": False, "second": True, "third": True}
