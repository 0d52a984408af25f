"""Magnitude against sums written out by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxprune import analyze
from fxprune.analysis.groups import Group
from fxprune.axes.elements import channels_of
from fxprune.criteria import Magnitude, score_groups
from fxprune.criteria.rows import TensorSums, channel_rows, slice_sums
from fxprune.errors import CriterionError
from tests.planning import graphs
from tests.planning.graphs import HandGraph


def random_tensors(graph: HandGraph, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in graph.shapes.items()}


def by_hand(group: Group, tensors: Mapping[str, Tensor], names: set[str], p: int) -> np.ndarray:
    """Element by element: every element of a member belongs to one unit or to none."""
    total = np.zeros(group.size)
    for member in group.members:
        if member.tensor in names:
            powered = tensors[member.tensor].abs() ** p
            slices = powered.movedim(member.dim, 0).reshape(powered.shape[member.dim], -1).sum(1).numpy()
            for unit, value in zip(channels_of(member.axis, group.variable), slices, strict=True):
                if unit >= 0:
                    total[unit] += value
    return total


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("build", [graphs.chain, graphs.residual, graphs.attention, graphs.gathered])
def test_group_scope_sums_every_tied_parameter(build: Callable[..., HandGraph], p: int) -> None:
    graph = build(6, 5) if build is graphs.chain else build()
    tensors = random_tensors(graph)
    names = {term.owner for term in graph.params}
    scores = score_groups(Magnitude(p, normalise="none"), graph, tensors)
    assert scores is not None
    for group in graph.groups:
        np.testing.assert_allclose(scores[group], by_hand(group, tensors, names, p), rtol=1e-12)


def test_producer_scope_is_the_norm_of_the_filter() -> None:
    graph = graphs.chain(4, 3)
    tensors = random_tensors(graph)
    weight = tensors["conv1.weight"].flatten(1)
    for p, expected in ((1, weight.abs().sum(1)), (2, weight.norm(dim=1))):
        scores = Magnitude(p, "producer", "none").score(graph.group("c1"), tensors, graph)
        np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-12)


def test_producer_scope_joins_all_producers_of_a_stream() -> None:
    graph = graphs.residual(blocks=2)
    tensors = random_tensors(graph)
    rows = [tensors[f"{n}.weight"].flatten(1) for n in ("stem", "blocks.0.conv2", "blocks.1.conv2")]
    scores = Magnitude(2, "producer", "none").score(graph.group("stream"), tensors, graph)
    np.testing.assert_allclose(scores, torch.cat(rows, 1).norm(dim=1).numpy(), rtol=1e-12)


def test_a_bias_counts_only_where_there_is_no_kernel() -> None:
    graph = graphs.attention()
    tensors = random_tensors(graph)
    before = Magnitude(2, "producer").score(graph.group("heads"), tensors, graph)
    tensors["qkv.bias"] *= 100
    np.testing.assert_array_equal(Magnitude(2, "producer").score(graph.group("heads"), tensors, graph), before)


def test_buffers_never_count() -> None:
    graph = graphs.chain(4, 3)
    tensors = random_tensors(graph)
    before = Magnitude().score(graph.group("c0"), tensors, graph)
    tensors["norm0.running_var"] *= 1e6
    np.testing.assert_array_equal(Magnitude().score(graph.group("c0"), tensors, graph), before)


def test_permuting_channels_permutes_scores() -> None:
    graph = graphs.chain(6, 3)
    tensors = random_tensors(graph)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    moved = {n: t[order] if n in ("conv0.weight", "norm0.weight", "norm0.bias") else t for n, t in tensors.items()}
    moved["conv1.weight"] = tensors["conv1.weight"][:, order]
    group = graph.group("c0")
    before, after = (Magnitude().score(group, t, graph) for t in (tensors, moved))
    np.testing.assert_allclose(after, before[order.numpy()], rtol=1e-12)


def test_mean_scaling_forgets_the_scale_of_the_weights() -> None:
    graph = graphs.chain(6)
    tensors = random_tensors(graph)
    group = graph.group("c0")
    before = Magnitude().score(group, tensors, graph)
    after = Magnitude().score(group, {n: 3 * t for n, t in tensors.items()}, graph)
    np.testing.assert_allclose(after, before, rtol=1e-12)
    assert before.mean() == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("power", [1, 2])
def test_slice_sums_in_chunks(dtype: torch.dtype, power: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.criteria.rows._CHUNK", 7)
    tensor = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    for dim in range(3):
        expected = (tensor.double().abs() ** power).sum([d for d in range(3) if d != dim])
        rtol = 1e-12 if dtype == torch.float64 else 1e-6
        np.testing.assert_allclose(slice_sums(tensor, dim, power), expected.numpy(), rtol=rtol)


def test_slice_sums_of_odd_shapes() -> None:
    assert slice_sums(torch.zeros(0, 3), 1, 2).tolist() == [0, 0, 0]
    assert slice_sums(torch.zeros(1, 0, 3), 2, 2).tolist() == [0, 0, 0]
    assert slice_sums(torch.zeros(2, 0, 1), 1, 1).tolist() == []
    assert slice_sums(torch.zeros(0, 3), 0, 2).tolist() == []
    assert slice_sums(torch.tensor([-2.0, 3.0], requires_grad=True), 0, 1).tolist() == [2, 3]
    assert slice_sums(torch.full((2, 2), 1e200, dtype=torch.float64), 0, 1).tolist() == [2e200, 2e200]


def test_each_dim_is_reduced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(tensor: Tensor, dim: int, power: int) -> np.ndarray:
        calls.append(dim)
        return slice_sums(tensor, dim, power)

    monkeypatch.setattr("fxprune.criteria.rows.slice_sums", counted)
    graph = graphs.dense(10, stem=4, growth=2, transition=99)
    score_groups(Magnitude(), graph, random_tensors(graph))
    parameter_dims = {(m.tensor, m.dim) for g in graph.groups for m in g.members if "running" not in m.tensor}
    assert len(calls) == len(parameter_dims)


def test_sums_are_a_mapping() -> None:
    tensors = {"a": torch.ones(2), "b": torch.ones(3)}
    sums = TensorSums.of(tensors)
    assert TensorSums.of(sums) is sums
    assert (list(sums), len(sums), sums["b"].shape) == (["a", "b"], 2, (3,))


@pytest.mark.parametrize("arguments", [{"p": 3}, {"scope": "layer"}, {"normalise": "softmax"}])
def test_unknown_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(CriterionError, match=str(next(iter(arguments.values())))):
        Magnitude(**arguments)


def test_complex_weights_count_by_their_absolute_values() -> None:
    weight = torch.tensor([[3 + 4j, 0], [0, 5 - 12j]])
    assert slice_sums(weight, 0, 1).tolist() == [5.0, 13.0]
    assert slice_sums(weight, 1, 2).tolist() == pytest.approx([25.0, 169.0])


class OuterProduct(nn.Module):
    """Every channel times every other, in one long row: an entry of the head is read for both."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 3, bias=False), nn.Linear(9, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.head((h.unsqueeze(2) * h.unsqueeze(1)).flatten(1))


def test_a_weight_that_two_channels_share_counts_for_both_and_once() -> None:
    net = OuterProduct().double().eval()
    graph = analyze(net, torch.randn(2, 4).double())
    (group,) = graph.groups
    first, head = net.first.weight.detach().abs(), net.head.weight.detach().abs().reshape(2, 3, 3)
    read = [float(head[:, i].sum() + head[:, :, i].sum() - head[:, i, i].sum()) for i in range(group.size)]
    scores = score_groups(Magnitude(1, normalise="none"), graph, dict(net.named_parameters()))
    assert scores is not None
    np.testing.assert_allclose(scores[group], first.sum(1).numpy() + read, rtol=1e-12)
    member = next(member for member in group.members if member.tensor == "head.weight")
    np.testing.assert_allclose(channel_rows(net.head.weight, member, group.variable).abs().sum(1), read, rtol=1e-12)
