"""The allocator: budgets, limits, ties, determinism."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxprune.axes.elements import Mask
from fxprune.errors import BudgetError, CriterionError, RatioError
from fxprune.groups import Group
from fxprune.planning import BUDGETS, allocate, budget_model
from tests.planning import graphs
from tests.planning.graphs import HandGraph

Scores = dict[Group, np.ndarray]
SMALL: dict[str, Callable[[], HandGraph]] = {
    "chain": lambda: graphs.chain(8, 12, 5),
    "residual": graphs.residual,
    "dense": lambda: graphs.dense(6, stem=8, growth=4, transition=3),
    "attention": graphs.attention,
}


def random_scores(graph: HandGraph, seed: int = 0) -> Scores:
    stream = np.random.default_rng(seed)
    return {g: stream.random(g.size) for g in graph.groups}


def saved(graph: HandGraph, masks: Mapping[Group, Mask], budget: str = "macs") -> float:
    model = budget_model(graph, budget)
    return model.full - model.exact({g.variable: m for g, m in masks.items()})


def first_unit_costs(graph: HandGraph, budget: str) -> list[float]:
    model = budget_model(graph, budget)
    return [c for g in graph.groups if g.size > 1 and (c := model.marginal(g.variable, {})) > 0]


@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", SMALL)
def test_meets_the_budget_and_overshoots_by_less_than_the_cheapest_unit(name: str, budget: str, scope: str) -> None:
    graph = SMALL[name]()
    full = budget_model(graph, budget).full
    cheapest = min(first_unit_costs(graph, budget))
    for ratio in (0.001, 0.1, 0.3, 0.5):
        for seed in range(3):
            masks = allocate(graph, random_scores(graph, seed), ratio=ratio, budget=budget, scope=scope)
            over = saved(graph, masks, budget) - ratio * full
            assert 0 <= over < cheapest
            assert all(mask.any() for mask in masks.values())


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.floats(0, 0.99, allow_subnormal=False),
    st.sampled_from(["global", "uniform"]),
    st.sampled_from(BUDGETS),
    st.randoms(use_true_random=False),
)
@settings(max_examples=150, deadline=None)
def test_every_reachable_ratio_is_reached(widths: list[int], ratio: float, scope: str, budget: str, rng: Any) -> None:
    graph = graphs.chain(*widths)
    scores = {g: np.array([rng.choice([0.0, 0.5, rng.random()]) for _ in range(g.size)]) for g in graph.groups}
    model = budget_model(graph, budget)
    narrowest = {g.variable: 1 for g in graph.groups}
    reach = model.full - model.total(narrowest)
    if ratio > 0 and (ratio * model.full > reach or reach == 0):
        with pytest.raises(BudgetError) as caught:
            allocate(graph, scores, ratio=ratio, scope=scope, budget=budget)
        assert caught.value.reachable == pytest.approx(reach / model.full)
        return
    masks = allocate(graph, scores, ratio=ratio, scope=scope, budget=budget)
    over = saved(graph, masks, budget) - ratio * model.full
    assert over >= 0
    # Not strictly below: a tiny ratio is lost in the rounding of the difference. The one unit that a group of two has
    # to give in a uniform run is not given back.
    if ratio > 0 and not (scope == "uniform" and 2 in widths):
        assert over <= max(min(first_unit_costs(graph, budget)), min(gains_of_giving_back(graph, masks, budget)))


def gains_of_giving_back(graph: HandGraph, masks: Mapping[Group, Mask], budget: str) -> list[float]:
    """What is lost of the saving where one unit of a group comes back: where none may, no plan is nearer to the budget.

    In a narrow network every unit left may cost more than the cheapest one at first did.
    """
    costs = []
    for group, mask in masks.items():
        if not mask.all():
            more = mask.copy()
            more[np.flatnonzero(~mask)[0]] = True
            costs.append(saved(graph, masks, budget) - saved(graph, {**masks, group: more}, budget))
    return costs


def test_the_cheapest_unit_of_all_may_not_be_enough() -> None:
    """Found by drawn chains: the cheapest unit cannot stand for one of the costly group, whichever way scores are."""
    graph = graphs.chain(9, 1, 2)
    for seed in range(20):
        masks = allocate(graph, random_scores(graph, seed), ratio=0.25)
        over = saved(graph, masks) - 0.25 * budget_model(graph, "macs").full
        assert 0 <= over <= min(gains_of_giving_back(graph, masks, "macs"))


@pytest.mark.parametrize("build", [graphs.gathered, graphs.crossed_gather])
@pytest.mark.parametrize("ratio", [0.05, 0.2, 0.4, 0.6])
def test_units_of_unequal_cost(build: Callable[[], HandGraph], ratio: float) -> None:
    graph = build()
    for seed in range(5):
        masks = allocate(graph, random_scores(graph, seed), ratio=ratio)
        need = ratio * budget_model(graph, "macs").full
        assert saved(graph, masks) >= need
        for group, mask in masks.items():
            last = _last_removed(random_scores(graph, seed)[group], mask)
            if last is not None:
                returned = {**masks, group: mask | (np.arange(group.size) == last)}
                assert saved(graph, returned) < need


def _last_removed(scores: np.ndarray, mask: Mask) -> int | None:
    gone = np.flatnonzero(~mask)
    return int(gone[np.lexsort((-gone, scores[gone]))][-1]) if len(gone) else None


def test_lowest_scores_go_first() -> None:
    graph = graphs.chain(6, 6)
    scores = {g: np.array([5.0, 1, 4, 2, 3, 6]) for g in graph.groups}
    for mask in allocate(graph, scores, ratio=0.5).values():
        gone = np.flatnonzero(~mask)
        assert set(gone) == set(np.argsort([5.0, 1, 4, 2, 3, 6])[: len(gone)])


def test_ties_keep_the_lowest_index() -> None:
    graph = graphs.chain(7, 7)
    masks = allocate(graph, {g: np.ones(g.size) for g in graph.groups}, ratio=0.4)
    for mask in masks.values():
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)


def test_global_scope_follows_the_scores_and_empties_no_group() -> None:
    graph = graphs.chain(8, 8)
    weak, strong = graph.groups
    masks = allocate(graph, {weak: np.full(8, 0.1), strong: np.full(8, 9.0)}, ratio=0.9, budget="params")
    assert masks[weak].sum() == 1
    assert 1 < masks[strong].sum() < 8


def test_uniform_scope_takes_the_same_share() -> None:
    graph = graphs.chain(64, 128, 256)
    masks = allocate(graph, random_scores(graph), ratio=0.5, scope="uniform")
    shares = [1 - masks[g].mean() for g in graph.groups]
    assert max(shares) - min(shares) <= 1 / 64 + 1e-9


def test_uniform_scope_touches_every_group() -> None:
    graph = graphs.chain(4, 200, 4, 50)
    masks = allocate(graph, random_scores(graph), ratio=0.4, scope="uniform")
    assert not any(mask.all() for mask in masks.values())


def test_global_scope_leaves_alone_what_saves_nothing() -> None:
    builder = graphs.Builder()
    used, free = graphs.channels(8), graphs.channels(8)
    builder.conv("conv", used, graphs.IN)
    builder.linear("fc", graphs.OUT, used)
    builder.norm("norm", free)
    graph = builder.build({"used": used, "free": free})
    scores = {graph.group("used"): np.ones(8), graph.group("free"): np.zeros(8)}
    assert allocate(graph, scores, ratio=0.5)[graph.group("free")].all()
    uniform = allocate(graph, scores, ratio=0.5, scope="uniform")
    assert uniform[graph.group("free")].sum() in (4, 5)


def test_ratio_zero_keeps_everything() -> None:
    graph = graphs.residual()
    assert all(m.all() for m in allocate(graph, random_scores(graph), ratio=0).values())


@pytest.mark.parametrize("ratio", [-0.1, 1, 1.0, 2, float("nan"), float("inf"), "0.5", None, True, [0.5]])
def test_bad_ratios(ratio: Any) -> None:
    graph = graphs.chain(4)
    with pytest.raises(RatioError, match="ratio"):
        allocate(graph, random_scores(graph), ratio=ratio)


@pytest.mark.parametrize(
    "option",
    [
        {"budget": "flops"},
        {"scope": "local"},
        {"residual": "outer"},
        {"round_to": 0},
        {"round_to": 1.5},
        {"min_channels": 0},
        {"max_ratio": 1.5},
        {"max_ratio": float("nan")},
    ],
)
def test_bad_options(option: dict[str, Any]) -> None:
    graph = graphs.chain(4)
    with pytest.raises(BudgetError, match=next(iter(option))):
        allocate(graph, random_scores(graph), ratio=0.1, **option)


def test_scores_must_fit() -> None:
    graph = graphs.chain(4)
    for bad in ({}, {graph.groups[0]: np.zeros(3)}, {graph.groups[0]: np.full(4, np.nan)}):
        with pytest.raises(CriterionError, match="c0"):
            allocate(graph, bad, ratio=0.1)


def test_round_to() -> None:
    graph = graphs.chain(30, 64, 7)
    masks = allocate(graph, random_scores(graph), ratio=0.5, round_to=8)
    for group, mask in masks.items():
        assert mask.all() or mask.sum() % 8 == 0, group.name
    assert masks[graph.group("c2")].all()
    assert saved(graph, masks) >= 0.5 * budget_model(graph, "macs").full


def test_min_channels_and_max_ratio() -> None:
    graph = graphs.chain(10, 20, 3)
    masks = allocate(graph, random_scores(graph), ratio=0.2, min_channels=9)
    assert [int(masks[g].sum()) >= min(9, g.size) for g in graph.groups] == [True] * 3
    masks = allocate(graph, random_scores(graph), ratio=0.4, max_ratio=0.3)
    assert [int(masks[g].sum()) >= np.ceil(0.7 * g.size) for g in graph.groups] == [True] * 3
    assert masks[graph.group("c0")].sum() == 7


def test_inner_residual_keeps_the_stream() -> None:
    graph = graphs.residual()
    assert not allocate(graph, random_scores(graph), ratio=0.5)[graph.group("stream")].all()
    masks = allocate(graph, random_scores(graph), ratio=0.5, residual="inner")
    assert masks[graph.group("stream")].all()


def test_out_of_reach_says_how_far_and_what_stands_in_the_way() -> None:
    graph = graphs.chain(8, 8)
    with pytest.raises(BudgetError, match="out of reach") as caught:
        allocate(graph, random_scores(graph), ratio=0.99, budget="params")
    assert caught.value.pinned == ["conv0.weight dim 1", "fc.weight dim 0", "fc.bias dim 0"]
    assert "input" in str(caught.value)
    reachable = caught.value.reachable
    assert reachable is not None
    masks = allocate(graph, random_scores(graph), ratio=reachable, budget="params")
    assert all(mask.sum() == 1 for mask in masks.values())
    with pytest.raises(BudgetError):
        allocate(graph, random_scores(graph), ratio=float(np.nextafter(reachable, 1)), budget="params")


def test_out_of_reach_names_the_limits() -> None:
    graph = graphs.residual()
    with pytest.raises(BudgetError, match=r"kept whole.*round_to=4.*max_ratio=0.5"):
        allocate(graph, random_scores(graph), ratio=0.9, residual="inner", round_to=4, max_ratio=0.5)


def test_nothing_to_count() -> None:
    graph = graphs.HandGraph((), (), (), (), {}, {}, ())
    assert allocate(graph, {}, ratio=0) == {}
    with pytest.raises(BudgetError, match="nothing to remove"):
        allocate(graph, {}, ratio=0.5)


def test_structure_alone_keeps_the_lowest_indices() -> None:
    graph = graphs.chain(16, 16)
    masks = allocate(graph, None, ratio=0.5)
    kept = [int(m.sum()) for m in masks.values()]
    assert max(kept) - min(kept) <= 1
    assert all(mask[: mask.sum()].all() for mask in masks.values())


def test_same_inputs_same_masks() -> None:
    graph = graphs.dense(12, stem=16, growth=8)
    first = allocate(graph, random_scores(graph), ratio=0.37)
    again = allocate(graph, random_scores(graph), ratio=0.37)
    assert all((first[g] == again[g]).all() for g in graph.groups)


def test_speed_on_many_groups_and_on_wide_ones() -> None:
    for graph in (graphs.dense(96), graphs.chain(2, 100_000, 100_000)):
        start = time.process_time()
        allocate(graph, random_scores(graph), ratio=0.5)
        assert time.process_time() - start < 2.0
