"""The cost model against counting element by element."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxprune.axes.elements import Mask
from fxprune.axes.expressions import Axis, Channels, Fixed, Term, concat, gather, product
from fxprune.cost.budgets import CostModel
from tests.planning import graphs
from tests.planning.graphs import HandGraph, brute_force, channels

GRAPHS: dict[str, Callable[[], HandGraph]] = {
    "chain": lambda: graphs.chain(8, 6, 5),
    "residual": graphs.residual,
    "dense": lambda: graphs.dense(14, stem=8, growth=4),
    "attention": graphs.attention,
    "gathered": graphs.gathered,
    "crossed": graphs.crossed_gather,
}


def random_masks(graph: HandGraph, seed: int) -> dict[Channels, Mask]:
    stream = np.random.default_rng(seed)
    masks = {g.variable: stream.random(g.size) < 0.6 for g in graph.groups}
    for mask in masks.values():
        mask[stream.integers(len(mask))] = True
    return masks


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("budget", ["macs", "params"])
def test_exact_equals_counting(name: str, budget: str) -> None:
    graph = GRAPHS[name]()
    terms = getattr(graph, budget)
    model = CostModel(terms)
    assert model.full == brute_force(terms, {})
    for seed in range(5):
        masks = random_masks(graph, seed)
        assert model.exact(masks) == brute_force(terms, masks)
        assert sum(model.by_owner(masks).values()) == pytest.approx(model.exact(masks), rel=1e-12)


@pytest.mark.parametrize("name", ["chain", "residual", "dense", "attention"])
def test_total_needs_only_widths(name: str) -> None:
    graph = GRAPHS[name]()
    model = CostModel(graph.macs)
    masks = random_masks(graph, 7)
    widths = {variable: int(mask.sum()) for variable, mask in masks.items()}
    assert model.total(widths) == brute_force(graph.macs, masks)


def test_marginal_is_the_saving_of_one_channel() -> None:
    graph = graphs.chain(8, 6)
    model = CostModel(graph.macs)
    first = graph.group("c0").variable
    # conv0: 144 * 3 per row; conv1: 144 * 6 per column.
    assert model.marginal(first, {}) == 144 * 3 + 144 * 6
    assert model.marginal(first, {graph.group("c1").variable: 2}) == 144 * 3 + 144 * 2


def test_a_variable_squared() -> None:
    width = channels(5)
    model = CostModel([Term("conv", 2.0, (width, width))])
    assert model.full == 50
    assert model.total({width: 3}) == 18


def test_gathered_total_is_the_mean_over_choices() -> None:
    units = channels(4)
    model = CostModel([Term("op", 1.0, (gather(units, np.array([0, 0, 0, 1, 2, 3])),))])
    assert model.total({units: 2}) == 3.0
    assert model.exact({units: np.array([True, False, False, True])}) == 4.0


def test_empty_terms_cost_nothing() -> None:
    assert CostModel([]).full == 0.0
    assert CostModel([Term("op", 3.0, (Fixed(4), Fixed(5)))]).full == 60.0


@st.composite
def axes(draw: st.DrawFn, pool: list[Channels], depth: int = 2) -> Axis:
    kind = draw(
        st.sampled_from(["channels", "fixed", "product", "concat", "gather"] if depth else ["channels", "fixed"])
    )
    if kind == "channels":
        return draw(st.sampled_from(pool))
    if kind == "fixed":
        return Fixed(draw(st.integers(1, 3)))
    if kind == "gather":
        base = draw(axes(pool, depth - 1))
        index = draw(st.lists(st.integers(0, base.size - 1), min_size=1, max_size=6))
        return gather(base, np.array(index, dtype=np.int64))
    parts = draw(st.lists(axes(pool, depth - 1), min_size=2, max_size=3))
    return product(parts) if kind == "product" else concat(parts)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_expression(data: st.DataObject) -> None:
    pool = [channels(size) for size in (2, 3, 4)]
    drawn = data.draw(st.lists(st.tuples(axes(pool), axes(pool)), min_size=1, max_size=4))
    terms = tuple(Term(str(i), float(i + 1), pair) for i, pair in enumerate(drawn))
    masks = {v: np.array(data.draw(st.lists(st.booleans(), min_size=v.size, max_size=v.size))) for v in pool}
    assert CostModel(terms).exact(masks) == brute_force(terms, masks)


def test_equal_expressions_are_shared_and_evaluation_is_fast() -> None:
    graph = graphs.dense(96)
    model = CostModel(graph.macs)
    assert len(model.leaves) == len(graph.groups)
    values = np.array([leaf.exact({}) for leaf in model.leaves])
    start = time.process_time()
    for _ in range(100):
        model.evaluate(values)
    assert (time.process_time() - start) / 100 < 2e-3
