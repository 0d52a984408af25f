"""Where groups are tapped, and what is read there."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.analysis.solving import ChannelGraph
from fxprune.calibration import Calibration, Collector, Observation, Seen, TapFinder
from fxprune.capture.samples import Sample
from fxprune.errors import CriterionError


class Residual(nn.Module):
    """A stream with one block, a depthwise convolution, and a head behind a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv1, self.bn1 = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.conv2, self.bn2 = nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 5, 1)
        self.head = nn.Linear(5 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)), inplace=True)
        y = self.depthwise(F.relu_(self.bn1(self.conv1(x))))
        x = F.relu(x + self.bn2(self.conv2(y)))
        return self.head(self.last(x).relu_().flatten(1))


class Heads(nn.Module):
    """Attention with a packed projection."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def nodes(model: nn.Module, sample: Tensor, rule: str) -> dict[str, list[str]]:
    graph = fxprune.analyze(model, sample)
    finder = TapFinder(graph)
    return {g.name: [tap.node.name for tap in finder.taps(g, rule)] for g in graph.groups}


IMAGE = torch.randn(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("rule", "stem", "inner", "last"),
    [
        ("normalised", ["add"], ["bn1", "depthwise"], ["last"]),
        ("activated", ["relu_1"], ["relu_", "depthwise"], ["relu__1"]),
        ("pooled", ["relu_1"], ["relu_", "depthwise"], ["relu__1"]),
        ("producer", ["stem", "conv2"], ["conv1", "depthwise"], ["last"]),
    ],
)
def test_the_rule(rule: str, stem: list[str], inner: list[str], last: list[str]) -> None:
    found = nodes(Residual().eval(), IMAGE, rule)
    assert found == {"stem": stem, "conv1": inner, "last": last}


class Pools(nn.Module):
    """A max-pool that alone reads the activations, and one beside a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.max_pool2d(F.relu(self.first(x)), 2)))
        return self.head(torch.cat((x, F.max_pool2d(x, 1)), 1).mean((2, 3)))


def test_pooled_maps_are_read_where_nothing_else_reads_them_unpooled() -> None:
    found = nodes(Pools().eval(), IMAGE, "pooled")
    assert found["first"] == ["max_pool2d"]
    assert found == nodes(Pools().eval(), IMAGE, "activated") | {"first": ["max_pool2d"]}


def test_heads_are_read_after_attention() -> None:
    found = nodes(Heads().eval(), torch.randn(2, 5, 8), "normalised")
    assert found["qkv/0"] == ["scaled_dot_product_attention"]


def test_readings_are_where_a_channel_is_read_for_the_last_time() -> None:
    graph = fxprune.analyze(Residual().eval(), IMAGE)
    finder = TapFinder(graph)
    found = {g.name: [(t.node.name, t.reader and t.reader.name) for t in finder.readings(g)] for g in graph.groups}
    assert found == {
        "stem": [("relu", "conv1"), ("relu_1", "last")],
        "conv1": [("depthwise", "conv2")],
        "last": [("flatten", "head")],
    }


def test_unknown_rule() -> None:
    graph = fxprune.analyze(Residual().eval(), IMAGE)
    with pytest.raises(CriterionError, match='"normalised", "activated", "pooled" or "producer", not'):
        TapFinder(graph).taps(graph.groups[0], "before")


class Recorder:
    """Keeps everything it is shown."""

    def __init__(self, needs: str = "value") -> None:
        self.needs = needs
        self.seen: list[Seen] = []

    def update(self, seen: Seen) -> None:
        self.seen.append(Seen(seen.value.clone(), seen.gradient, seen.samples))

    def sums(self) -> list[Tensor]:
        return []


def recorded(graph: ChannelGraph, model: nn.Module, sample: Tensor, name: str, rule: str, needs: str) -> list[Seen]:
    group = next(g for g in graph.groups if g.name == name)
    recorders = [Observation(tap, Recorder(needs)) for tap in TapFinder(graph).taps(group, rule)]
    batch = (sample, torch.zeros(len(sample), dtype=torch.long))
    Collector(graph, model, Calibration([batch], Sample.from_input(sample))).collect(recorders)
    return [r.statistic.seen[0] for r in recorders]  # type: ignore[attr-defined]


@pytest.mark.parametrize("needs", ["value", "gradient"])
def test_values_before_an_op_that_writes_in_place(needs: str) -> None:
    model = Residual().eval()
    batch = torch.randn(5, 3, 4, 4)
    graph = fxprune.analyze(model, batch)
    seen = recorded(graph, model, batch, "conv1", "normalised", needs)[0]
    with torch.no_grad():
        expected = model.bn1(model.conv1(F.relu(model.bn0(model.stem(batch)))))
    torch.testing.assert_close(seen.value, expected)
    assert (expected < 0).any()


def test_maps_of_heads() -> None:
    model, batch = Heads().eval(), torch.randn(3, 5, 8)
    graph = fxprune.analyze(model, batch)
    names = {g.name: g.size for g in graph.groups}
    (heads,) = recorded(graph, model, batch, "qkv/0", "producer", "value")
    assert names["qkv/0"] == 2
    assert heads.value.shape[:2] == (3, 2)
    packed = model.qkv(batch).detach().unflatten(-1, (3, 2, 4)).permute(0, 3, 2, 4, 1)
    torch.testing.assert_close(heads.value.reshape(3, 2, -1), packed.reshape(3, 2, -1))


def test_gradients_are_those_of_the_summed_loss() -> None:
    model, batch = Residual().eval(), torch.randn(3, 3, 4, 4)
    graph = fxprune.analyze(model, batch)
    (seen,) = recorded(graph, model, batch, "last", "normalised", "gradient")
    value = seen.value.clone().requires_grad_()
    loss = F.cross_entropy(model.head(value.relu().flatten(1)), torch.zeros(3, dtype=torch.long), reduction="sum")
    (expected,) = torch.autograd.grad(loss, value)
    assert seen.gradient is not None
    torch.testing.assert_close(seen.gradient, expected)
