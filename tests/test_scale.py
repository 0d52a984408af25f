"""Deep and wide networks finish; nothing recurses with depth or makes a Python object for each channel."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

import fxprune


class Stream(nn.Module):
    """A residual stream of many blocks."""

    def __init__(self, depth: int, width: int = 8) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, width), nn.Linear(width, 4)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(width, 12), nn.Linear(12, width)) for _ in range(depth)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x).tanh() / len(self.blocks)
        return self.last(x)


class Grown(nn.Module):
    """Every layer sees all before it, as in a densely connected block."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6 + 4 * i, 4) for i in range(depth)])
        self.last = nn.Linear(6 + 4 * depth, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x).tanh()], 1)
        return self.last(x)


class Wide(nn.Module):
    """A wide layer whose channels are turned around, cut in halves and joined again."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, width), nn.BatchNorm1d(width), nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.a(x)).relu()
        left, right = x.flip(1).chunk(2, 1)
        return self.b(torch.cat([left * right, right], 1))


def vector() -> torch.Tensor:
    return torch.randn(2, 6)


def chain(depth: int) -> nn.Module:
    layers = [layer for _ in range(depth) for layer in (nn.Linear(8, 8), nn.Tanh())]
    return nn.Sequential(nn.Linear(6, 8), *layers, nn.Linear(8, 4)).eval()


def finishes(model: nn.Module, groups: int, ratio: float = 0.3, **options: bool) -> fxprune.Report:
    pruned = fxprune.compile(model.eval(), vector(), ratio, **options)
    report = fxprune.report(pruned)
    assert len(report.groups) == groups
    assert report.achieved >= ratio
    assert pruned(vector()).shape == (2, 4)
    return report


def test_a_long_chain() -> None:
    finishes(chain(300), groups=301)


def test_a_long_residual_stream() -> None:
    finishes(Stream(150), groups=151)


def test_a_long_dense_block() -> None:
    finishes(Grown(60), groups=60)


def test_a_wide_layer() -> None:
    model = nn.Sequential(nn.Linear(6, 20_000), nn.BatchNorm1d(20_000), nn.ReLU(), nn.Linear(20_000, 4))
    finishes(model, groups=1)


def test_a_wide_layer_coupled_element_by_element() -> None:
    report = finishes(Wide(20_000), groups=1)
    assert report.groups[0].after < report.groups[0].before


def objects_made(model: nn.Module) -> int:
    """Python objects that an analysis leaves alive."""
    gc.collect()
    before = len(gc.get_objects())
    graph = fxprune.analyze(model.eval(), vector())
    gc.collect()
    made = len(gc.get_objects()) - before
    assert graph.groups
    return made


def test_the_number_of_python_objects_does_not_grow_with_the_width() -> None:
    objects_made(Wide(64))
    narrow, wide = objects_made(Wide(64)), objects_made(Wide(6_400))
    assert wide < 2 * narrow + 200


def test_a_long_chain_that_is_pinned_all_along_can_be_explained() -> None:
    layers = [nn.BatchNorm1d(8) for _ in range(300)]
    graph = fxprune.analyze(nn.Sequential(*layers), torch.randn(2, 8))
    assert graph.groups == ()
    assert "is pinned" in graph.explain("299.bias")
    assert len(graph.draw()) > 300


@pytest.mark.deep
@pytest.mark.parametrize("depth", [1000, 2000])
def test_a_very_long_chain(depth: int) -> None:
    finishes(chain(depth), groups=depth + 1)


@pytest.mark.deep
def test_a_very_long_residual_stream() -> None:
    finishes(Stream(1000), groups=1001)


@pytest.mark.deep
def test_a_very_long_dense_block() -> None:
    finishes(Grown(250), groups=250)


@pytest.mark.deep
def test_a_very_wide_layer() -> None:
    finishes(Wide(100_000), groups=1)
    finishes(nn.Sequential(nn.Linear(6, 100_000), nn.ReLU(), nn.Linear(100_000, 4)), groups=1)
