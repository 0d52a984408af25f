"""The latency model against multiply-accumulates: where a kernel takes as long as it has of these, the two are one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxprune
from fxprune.capture.samples import Sample
from fxprune.cost.budgets import CostModel
from fxprune.cost.measuring import measured_latency
from fxprune.util.progress import Steps
from tests.cost.tables import MacsTable


def conv_net(dims: int, transposed: bool = False) -> nn.Module:
    name = f"Conv{'Transpose' if transposed else ''}{dims}d"
    cls: Any = getattr(nn, name)
    norm: Any = getattr(nn, f"BatchNorm{dims}d")
    return nn.Sequential(cls(3, 32, 3, padding=1), norm(32), nn.ReLU(), cls(32, 48, 3, stride=2), cls(48, 4, 1))


class Grouped(nn.Module):
    """A depthwise convolution, a grouped one and one that reads a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.grouped = nn.Conv2d(32, 48, 1, groups=4)
        self.other = nn.Conv2d(32, 24, 1)
        self.head = nn.Conv2d(72, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(self.stem(x)).relu()
        return self.head(torch.cat([self.grouped(x), self.other(x)], 1))


class Attention(nn.Module):
    """Written out with matrix products and, second, with the fused function."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 40)
        self.first, self.second = nn.Linear(40, 3 * 32), nn.Linear(40, 3 * 32)
        self.after_first, self.after_second = nn.Linear(32, 40), nn.Linear(32, 40)
        self.norm = nn.LayerNorm(40)
        self.head = nn.Linear(40, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        b, t, _ = x.shape
        q, k, v = self.first(x).view(b, t, 3, 4, -1).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        x = x + self.after_first(mixed.transpose(1, 2).reshape(b, t, -1))
        q, k, v = self.second(self.norm(x)).view(b, t, 3, 4, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.after_second(mixed.transpose(1, 2).reshape(b, t, -1))
        return self.head(x.mean(1))


NETS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "conv1d": (lambda: conv_net(1), (2, 3, 17)),
    "conv2d": (lambda: conv_net(2), (1, 3, 9, 8)),
    "conv3d": (lambda: conv_net(3), (2, 3, 5, 5, 6)),
    "transposed": (lambda: conv_net(2, True), (2, 3, 5, 4)),
    "grouped": (Grouped, (1, 3, 6, 5)),
    "attention": (Attention, (1, 7, 6)),
}


@pytest.mark.parametrize("name", NETS)
def test_a_kernel_that_takes_its_macs_gives_the_macs(name: str) -> None:
    torch.manual_seed(0)
    make, shape = NETS[name]
    model, sample = make().eval(), torch.randn(shape)
    graph = fxprune.analyze(model, sample)
    table = MacsTable()
    latency = measured_latency(graph, model, Sample.from_input(sample), Steps(False), table)
    macs = CostModel(graph.macs)
    assert latency.full == pytest.approx(macs.full)
    # Between the knots too, in any combination: the cost is linear in each width, as is what is looked up.
    generator = np.random.default_rng(0)
    for _ in range(5):
        masks = {g.variable: np.arange(g.size) < generator.integers(g.size // 2 + 1, g.size + 1) for g in graph.groups}
        assert latency.exact(masks) == pytest.approx(macs.exact(masks))
        owners = latency.by_owner(masks)
        assert sum(owners.values()) == pytest.approx(macs.exact(masks))
        expected = {owner: value for owner, value in macs.by_owner(masks).items() if value}
        assert {owner: value for owner, value in owners.items() if value} == pytest.approx(expected)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(5, 24, batch_first=True)
        self.head = nn.Linear(24, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.recurrent(x)[0])


def test_calls_that_torch_refuses_grow_with_their_macs() -> None:
    torch.manual_seed(0)
    model, sample = Recurrent().eval(), torch.randn(2, 6, 5)
    graph = fxprune.analyze(model, sample)

    class Table(MacsTable):
        def known(self, key: str) -> float | None:
            return 3.0 if key.startswith("LSTM") else 0.0

        def seconds(self, key: str, prepare: Any) -> float:
            return 0.0 if key.startswith("linear") else super().seconds(key, prepare)

    latency = measured_latency(graph, model, Sample.from_input(sample), Steps(False), Table())
    assert latency.full == pytest.approx(3.0)
    masks = {g.variable: np.arange(g.size) < g.size // 2 for g in graph.groups}
    macs = CostModel(term for term in graph.macs if term.owner == "recurrent")
    assert 0 < latency.exact(masks) == pytest.approx(3.0 * macs.exact(masks) / macs.full)


def test_all_other_time_grows_with_the_bytes_moved() -> None:
    torch.manual_seed(0)
    model, sample = nn.Sequential(nn.Conv2d(3, 20, 1), nn.ReLU(), nn.Conv2d(20, 2, 1)).eval(), torch.randn(2, 3, 4, 4)
    graph = fxprune.analyze(model, sample)

    class Table(MacsTable):
        def known(self, key: str) -> float | None:
            return 5.0 if key.startswith("ReLU") else 0.0

        def seconds(self, key: str, prepare: Any) -> float:
            return 1.0 if key.startswith("nothing") else 0.0

    latency = measured_latency(graph, model, Sample.from_input(sample), Steps(False), Table())
    (group,) = graph.groups
    # One second is that of a call that does nothing, and four grow with the width.
    assert latency.exact({group.variable: np.arange(20) < 5}) == pytest.approx(1.0 + 4.0 * 5 / 20)
