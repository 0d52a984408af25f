"""No dim of any tensor becomes empty, and what is reachable is reached: against enumerating all masks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import fxprune
from fxprune.axes.elements import kept_mask
from fxprune.axes.expressions import Axis, Channels, Fixed, concat, gather, product
from fxprune.errors import BudgetError
from fxprune.planning import allocate, budget_model
from fxprune.planning.protecting import protected_channels
from tests.planning import graphs
from tests.planning.graphs import HandGraph, channels


def picked(variable: Axis, *index: int) -> Axis:
    return gather(variable, np.array(index, dtype=np.int64))


def protected(axes: list[Axis], **preference: tuple[Channels, list[float]]) -> dict[str, list[int]]:
    masks = protected_channels(axes, {v: np.array(p) for v, p in preference.values()})
    return {name: np.flatnonzero(masks[v]).tolist() for name, (v, _) in preference.items()}


def test_axes_that_cannot_become_empty_ask_for_nothing() -> None:
    a, b = channels(4), channels(3)
    axes: list[Axis] = [
        a,
        Fixed(3),
        concat([a, b]),
        product((a, b)),
        picked(a, 0, 1, 2, 3, 0),
        concat([picked(a, 0), b]),
        concat([picked(a, 0), Fixed(2)]),
        picked(concat([a, Fixed(2)]), 0, 4),
        picked(concat([a, b]), 0, 4, 5, 6),
    ]
    assert protected(axes, a=(a, [1, 2, 3, 4]), b=(b, [1, 2, 3])) == {"a": [], "b": []}


def test_the_best_unit_of_a_part_stays() -> None:
    a = channels(5)
    assert protected([picked(a, 0, 1, 2)], a=(a, [1, 9, 3, 10, 10])) == {"a": [1]}
    assert protected([picked(a, 0, 2, 1)], a=(a, [9, 9, 9, 1, 1])) == {"a": [0]}
    assert protected([product((Fixed(3), picked(a, 3, 4)))], a=(a, [0, 0, 0, 1, 2])) == {"a": [4]}


def test_one_unit_serves_several_axes() -> None:
    a = channels(5)
    axes = [picked(a, 0, 1, 2), picked(a, 2, 3), picked(a, 2, 4)]
    assert protected(axes, a=(a, [9, 9, 1, 9, 9])) == {"a": [2]}
    assert protected([*axes, picked(a, 3, 4)], a=(a, [9, 9, 1, 9, 8])) == {"a": [2, 3]}


def test_elements_of_several_variables() -> None:
    a, b = channels(3), channels(3)
    part = picked(concat([a, b]), 0, 1, 3)
    assert protected([part], a=(a, [1, 2, 3]), b=(b, [5, 6, 7])) == {"a": [], "b": [0]}
    assert protected([concat([picked(a, 1), picked(b, 2)])], a=(a, [1, 2, 3]), b=(b, [0, 0, 1])) == {"a": [1], "b": []}
    crossed = picked(product((a, b)), 1, 5, 6)  # units (0, 1), (1, 2) and (2, 0)
    assert protected([crossed], a=(a, [1, 2, 3]), b=(b, [3, 3, 3])) == {"a": [2], "b": [0]}
    assert protected([crossed], a=(a, [1, 2, 3])) == {"a": [2]}


def test_variables_that_are_never_cut_keep_an_axis_alive() -> None:
    a, b = channels(3), channels(3)
    assert protected([picked(concat([a, b]), 0, 4)], a=(a, [1, 2, 3])) == {"a": []}
    assert protected_channels([picked(b, 0)], {}) == {}


@st.composite
def gathered_graphs(draw: st.DrawFn) -> HandGraph:
    """Two groups; consumers read parts and repeats of the first, alone or beside the second."""
    builder = graphs.Builder()
    first, second = channels(draw(st.integers(2, 5))), channels(draw(st.integers(1, 3)))
    builder.conv("first", first, graphs.IN)
    builder.conv("second", second, first)
    for number in range(draw(st.integers(1, 3))):
        index = draw(st.lists(st.integers(0, first.size - 1), min_size=1, max_size=5))
        part = picked(first, *index)
        into = draw(st.sampled_from([part, concat([part, second]), product((part, second))]))
        builder.linear(f"reader{number}", Fixed(draw(st.integers(1, 4))), into)
    return builder.build({"first": first, "second": second})


def legal_savings(graph: HandGraph) -> Iterator[float]:
    """What every choice of masks saves that leaves each group and each tensor dim an element."""
    model = budget_model(graph, "macs")
    every = [list(itertools.product([False, True], repeat=g.size)) for g in graph.groups]
    for chosen in itertools.product(*every):
        masks = {g.variable: np.array(c) for g, c in zip(graph.groups, chosen, strict=True)}
        axes = (axis for dims in graph.tensors.values() for axis in dims)
        if all(m.any() for m in masks.values()) and all(kept_mask(a, masks).any() for a in axes):
            yield model.full - model.exact(masks)


@given(gathered_graphs(), st.floats(0.05, 1.0), st.sampled_from(["global", "uniform"]), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_reach_is_that_of_enumeration(graph: HandGraph, share: float, scope: str, seed: int) -> None:
    full = budget_model(graph, "macs").full
    best = max(legal_savings(graph)) / full
    stream = np.random.default_rng(seed)
    scores = {g: stream.random(g.size) for g in graph.groups}
    with pytest.raises(BudgetError) as caught:
        allocate(graph, scores, ratio=0.9999, scope=scope)
    # Which units to leave where gathers overlap is a set cover: chosen greedily, within 0.2 % in 1,500 drawn graphs.
    assert caught.value.reachable is not None
    assert 0.99 * best <= caught.value.reachable <= best + 1e-9
    ratio = share * caught.value.reachable
    if ratio == 0:
        return
    masks = {g.variable: m for g, m in allocate(graph, scores, ratio=ratio, scope=scope).items()}
    assert all(kept_mask(axis, masks).any() for dims in graph.tensors.values() for axis in dims)
    model = budget_model(graph, "macs")
    assert model.full - model.exact(masks) >= ratio * full
    if scope == "uniform":
        return  # shares are rounded, group by group
    # What goes is a beginning of the order of the scores: the last of it is needed.
    back = [
        {**masks, group.variable: masks[group.variable] | (np.arange(group.size) == channel)}
        for group in graph.groups
        for channel in np.flatnonzero(~masks[group.variable])
    ]
    assert any(model.full - model.exact(fuller) < ratio * full for fuller in back)


class OneOrMore(nn.Module):
    """An op that does something else with one channel."""

    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.between = nn.Conv2d(3, 4, 1), nn.Linear(4, 3), between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.between(functional.adaptive_avg_pool2d(self.first(x), 1)))


SQUEEZES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "everything": lambda x: x.squeeze(),
    "in place": lambda x: x.squeeze_(),
    "the channels": lambda x: x.squeeze(1).flatten(1),
    "several dims": lambda x: x.squeeze((1, 2, 3)),
    "halves": lambda x: x[:, ::2].squeeze().repeat(1, 2),
    "a deviation": lambda x: x.flatten(1) / (1 + x.flatten(1).std(1, keepdim=True)),
    "a layer norm": lambda x: functional.layer_norm(x.flatten(1), (x.shape[1],)),
    "a group norm": lambda x: functional.group_norm(x, 1).flatten(1),
    "an instance norm": lambda x: functional.instance_norm(x.transpose(1, 2)).flatten(1),
}


@pytest.mark.parametrize("name", SQUEEZES)
def test_two_channels_stay_where_one_would_be_dropped(name: str) -> None:
    model, x = OneOrMore(SQUEEZES[name]).eval(), torch.randn(2, 3, 4, 4)
    pruned = fxprune.compile(model, x, 0.5)
    assert pruned.get_parameter("first.weight").shape[0] == 2
    with pytest.raises(fxprune.errors.BudgetError):
        fxprune.compile(model, x, 0.7)
    graph = fxprune.analyze(model, x)
    (group,) = (g for g in graph.groups if g.name == "first")
    with pytest.raises(fxprune.errors.PlanError, match="fewer than 2"):
        fxprune.Plan.from_masks(graph, {group: np.arange(group.size) == 0}, {})


class EveryOther(nn.Module):
    """The largest of every other channel, which no weight holds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        return h[:, ::2].amax(1, keepdim=True) + self.last(h)


def test_no_plan_leaves_a_slice_without_any_channel() -> None:
    graph = fxprune.analyze(EveryOther().eval(), torch.randn(1, 3, 4, 4))
    (group,) = graph.groups
    with pytest.raises(fxprune.errors.PlanError, match="without any channel"):
        fxprune.Plan.from_masks(graph, {group: np.arange(group.size) % 2 == 1}, {})
    assert fxprune.Plan.from_masks(graph, {group: np.arange(group.size) > 2}, {}).keep["last.weight"]
