"""The allocator: budgets, limits, ties, determinism."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxprune
from fxprune.analysis.groups import Group
from fxprune.axes.elements import Mask
from fxprune.errors import BudgetError, CriterionError, RatioError
from fxprune.planning import BUDGETS, allocate, budget_model
from fxprune.planning.limits import automatic_multiples
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


SUMS = ("macs", "params", "channels")
RATIOS = (0.001, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


def shortest_prefix(graph: HandGraph, scores: Scores, ratio: float, budget: str) -> dict[Group, Mask]:
    """Units one by one, the lowest score first, equal ones in the order of the groups, until enough is saved."""
    model = budget_model(graph, budget)
    masks = {g: np.ones(g.size, dtype=np.bool_) for g in graph.groups}
    alone = {g: {**masks, g: np.arange(g.size) == 0} for g in graph.groups}
    queue = [
        (scores[g][unit], number, -unit, g)
        for number, g in enumerate(graph.groups)
        for unit in range(g.size)
        if saved(graph, alone[g], budget) > 0
    ]
    for _, _, unit, group in sorted(queue, key=lambda entry: entry[:3]):
        if saved(graph, masks, budget) >= ratio * model.full:
            break
        if masks[group].sum() > 1:
            masks[group][-unit] = False
    return masks


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", SMALL)
def test_the_lowest_scores_of_all_groups_are_removed_until_the_budget_is_met(name: str, budget: str) -> None:
    graph = SMALL[name]()
    for ratio in RATIOS:
        for seed in range(2):
            scores = random_scores(graph, seed)
            masks = allocate(graph, scores, ratio=ratio, budget=budget)
            prefix = shortest_prefix(graph, scores, ratio, budget)
            if budget in SUMS:
                assert all((masks[g] == prefix[g]).all() for g in graph.groups)
            # Where only the largest of several sums counts, steps that save nothing are given back.
            assert all((masks[g] >= prefix[g]).all() for g in graph.groups)
            assert saved(graph, masks, budget) >= ratio * budget_model(graph, budget).full
            assert budget in SUMS or saved(graph, masks, budget) >= saved(graph, prefix, budget)


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
    assert saved(graph, masks, budget) >= ratio * model.full
    if scope == "global" and budget in SUMS:
        prefix = shortest_prefix(graph, scores, ratio, budget)
        assert all((masks[g] == prefix[g]).all() for g in graph.groups)


@pytest.mark.parametrize("options", [{}, {"scope": "uniform"}, {"round_to": 4}, {"alike": "equal"}])
@pytest.mark.parametrize("budget", SUMS)
@pytest.mark.parametrize("name", SMALL)
def test_plans_of_one_set_of_scores_are_nested(name: str, budget: str, options: dict[str, Any]) -> None:
    graph = SMALL[name]()
    scores = random_scores(graph)
    before = {g: np.ones(g.size, dtype=np.bool_) for g in graph.groups}
    for ratio in np.linspace(0, 0.45, 40):
        masks = allocate(graph, scores, ratio=float(ratio), budget=budget, **options)
        assert all((masks[g] <= before[g]).all() for g in graph.groups)
        before = masks


def test_channels_without_effect_are_removed_first_whatever_they_cost() -> None:
    graph = graphs.chain(8, 8, 8)
    scores = {g: 1 + value for g, value in random_scores(graph).items()}
    dead = [(graph.groups[1], 3), (graph.groups[0], 6), (graph.groups[2], 1)]
    for group, unit in dead:
        scores[group][unit] = 0.0
    for ratio in np.linspace(0.01, 0.5, 30):
        masks = allocate(graph, scores, ratio=float(ratio))
        gone = sum(int((~mask).sum()) for mask in masks.values())
        assert sum(not masks[group][unit] for group, unit in dead) == min(gone, len(dead))


@pytest.mark.parametrize("build", [graphs.gathered, graphs.crossed_gather])
@pytest.mark.parametrize("ratio", [0.05, 0.2, 0.4, 0.6])
def test_units_of_unequal_cost(build: Callable[[], HandGraph], ratio: float) -> None:
    graph = build()
    for seed in range(5):
        scores = random_scores(graph, seed)
        masks = allocate(graph, scores, ratio=ratio)
        need = ratio * budget_model(graph, "macs").full
        assert saved(graph, masks) >= need
        gone = [(scores[g][unit], g, unit) for g, mask in masks.items() for unit in np.flatnonzero(~mask)]
        _, group, last = max(gone, key=lambda entry: entry[0])
        assert saved(graph, {**masks, group: masks[group] | (np.arange(group.size) == last)}) < need


def test_several_budgets_are_all_met_and_one_of_them_just() -> None:
    graph = graphs.residual()
    scores = random_scores(graph)
    both = allocate(graph, scores, budget={"macs": 0.4, "params": 0.5})
    alone = [allocate(graph, scores, ratio=0.4), allocate(graph, scores, ratio=0.5, budget="params")]
    for budget, ratio in (("macs", 0.4), ("params", 0.5)):
        assert saved(graph, both, budget) >= ratio * budget_model(graph, budget).full
    assert any(all((both[g] == masks[g]).all() for g in graph.groups) for masks in alone)
    with pytest.raises(BudgetError, match="of params is out of reach"):
        allocate(graph, scores, budget={"macs": 0.1, "params": 0.9999})
    with pytest.raises(BudgetError, match="unknown budget"):
        allocate(graph, scores, budget={"macs": 0.1, "flops": 0.3})
    with pytest.raises(RatioError, match="leave ratio out"):
        allocate(graph, scores, ratio=0.2, budget={"macs": 0.1})


def test_shares_by_pattern() -> None:
    graph = graphs.residual(width=16, inner=10, blocks=3)
    scores = random_scores(graph)
    masks = allocate(graph, scores, ratio={"blocks.1.conv1": 0.25, "blocks.*.conv1": 0.6, "stem": 0.5})
    assert {g.name: int(mask.sum()) for g, mask in masks.items()} == {
        "stream": 8,
        "block0": 4,
        "block1": 7,  # the first pattern that matches decides; at least a quarter of ten
        "block2": 4,
    }
    for group, mask in masks.items():
        assert scores[group][mask].min() > scores[group][~mask].max()
    kept = allocate(graph, scores, ratio={"*": 0.5}, exclude=["blocks.0.conv1"], residual="inner", round_to=2)
    assert [int(mask.sum()) for mask in kept.values()] == [16, 10, 4, 4]
    with pytest.raises(BudgetError, match=r"at most 5 of its 10.*max_ratio=0.5"):
        allocate(graph, scores, ratio={"block0": 0.6}, max_ratio=0.5)
    with pytest.raises(BudgetError, match=r"matches no width that may change \(fc.weight dim 0: it is a dim of"):
        allocate(graph, scores, ratio={"fc": 0.5})
    with pytest.raises(BudgetError, match="'nothing' matches no parameter"):
        allocate(graph, scores, ratio={"nothing": 0.5})
    with pytest.raises(RatioError):
        allocate(graph, scores, ratio={"stem": 1.5})


def test_limits_by_pattern() -> None:
    graph = graphs.residual(width=16, inner=16, blocks=2)
    floors = {"max_ratio": {"block0": 0.25, "*": 0.5}, "min_channels": {"blocks.1": 10}, "round_to": {"stream": 8}}
    masks = allocate(graph, random_scores(graph), ratio=0.25, **floors)  # type: ignore[arg-type]
    kept = {g.name: int(mask.sum()) for g, mask in masks.items()}
    assert kept["block0"] >= 12
    assert kept["block1"] >= 10
    assert kept["stream"] in (8, 16)


def test_repeated_blocks_alike() -> None:
    graph = graphs.residual(width=16, inner=8, blocks=4)
    for ratio in (0.1, 0.3, 0.5):
        scores = random_scores(graph, 1)
        equal = allocate(graph, scores, ratio=ratio, alike="equal")
        assert len({int(mask.sum()) for g, mask in equal.items() if g.name != "stream"}) == 1
        assert saved(graph, equal) >= ratio * budget_model(graph, "macs").full
        # Which channels go is still each group's own matter.
        for group, mask in equal.items():
            assert mask.all() or scores[group][mask].min() > scores[group][~mask].max()
        free = allocate(graph, scores, ratio=ratio)
        assert len({int(mask.sum()) for g, mask in free.items() if g.name != "stream"}) > 1
    # One that is kept whole does not hold back the others.
    some = allocate(graph, scores, ratio=0.3, alike="equal", exclude=["blocks.2.conv1"])
    assert some[graph.group("block2")].all()
    assert len({int(some[graph.group(f"block{i}")].sum()) for i in (0, 1, 3)}) == 1 < 8


def test_layers_of_one_block_are_not_alike() -> None:
    builder = graphs.Builder()
    named, into = {}, graphs.IN
    for block in range(3):
        for layer in ("conv1", "conv2"):
            named[f"blocks.{block}.{layer}"] = channel = graphs.channels(8)
            builder.conv(f"blocks.{block}.{layer}", channel, into)
            into = channel  # type: ignore[assignment]
    builder.linear("fc", graphs.OUT, into)
    graph = builder.build(named)
    scores = {g: np.arange(8.0) + (4 if "conv1" in g.name else 0) for g in graph.groups}
    kept = {g.name: int(m.sum()) for g, m in allocate(graph, scores, ratio=0.5, alike="equal").items()}
    assert len({kept[f"blocks.{block}.conv2"] for block in (0, 1)}) == 1
    assert kept["blocks.1.conv1"] == kept["blocks.2.conv1"] > kept["blocks.1.conv2"]


def test_automatic_rounding() -> None:
    graph = graphs.chain(64, 30, 16, 9, 5)
    for ratio in (0.1, 0.3, 0.5, 0.7):
        masks = allocate(graph, random_scores(graph), ratio=ratio, round_to="auto")
        for group, multiple in zip(graph.groups, (8, 2, 2, 1, 1), strict=True):
            assert masks[group].all() or masks[group].sum() % multiple == 0
    # A ratio that only finer widths reach is reached.
    most = (
        1 - budget_model(graph, "macs").total({g.variable: 1 for g in graph.groups}) / budget_model(graph, "macs").full
    )
    masks = allocate(graph, random_scores(graph), ratio=most - 1e-9, round_to="auto")
    assert all(mask.sum() == 1 for mask in masks.values())


def test_a_head_counts_as_its_channels_in_automatic_rounding() -> None:
    graph = graphs.attention(width=64, heads=8)
    multiples = automatic_multiples(graph, 8)
    assert {g.name: n for g, n in multiples.items()} == {"stream": 8, "heads": 1, "head_dim": 1}


def test_streams_and_depthwise_layers_take_coarser_automatic_multiples() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.expand, self.depthwise = nn.Conv2d(24, 48, 1), nn.Conv2d(48, 48, 3, padding=1, groups=48)
            self.project, self.inner, self.outer = nn.Conv2d(48, 24, 1), nn.Conv2d(24, 48, 1), nn.Conv2d(48, 24, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.project(self.depthwise(self.expand(x)))
            return x + self.outer(self.inner(x).relu())

    first = [nn.Conv2d(1, 64, 1), nn.Conv2d(64, 24, 1), Block()]
    graph = fxprune.analyze(nn.Sequential(*first, nn.Conv2d(24, 8, 1)), torch.randn(1, 1, 8, 8))
    finest = {"0": 8, "1": 2, "2.expand": 4, "2.inner": 4}  # a step would save a large share of the network
    assert {g.name: n for g, n in automatic_multiples(graph, 16).items()} == finest
    more = nn.Conv2d(24, 512, 1), nn.Conv2d(512, 512, 1), nn.Conv2d(512, 8, 1)
    graph = fxprune.analyze(nn.Sequential(*first, *more), torch.randn(1, 1, 8, 8))
    coarser = {**finest, "1": 8, "2.expand": 16}
    assert {g.name: n for g, n in automatic_multiples(graph, 16).items()} == {**coarser, "3": 16, "4": 16}
    # Of a tensor core's multiples, these groups have eight, too.
    assert {g.name: n for g, n in automatic_multiples(graph, 64).items()} == {**coarser, "3": 64, "4": 64}


def test_lowest_scores_are_removed_first() -> None:
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


@pytest.mark.parametrize("round_to", [1, 4, 8, "auto"])
def test_uniform_scope_gives_equal_layers_equal_widths(round_to: int | str) -> None:
    graph = graphs.chain(24, 48, 24, 48, 24, 24)
    for ratio in RATIOS:
        masks = allocate(graph, random_scores(graph), ratio=ratio, scope="uniform", round_to=round_to)
        kept = {(g.size, int(mask.sum())) for g, mask in masks.items()}
        assert len(kept) == 2
        assert saved(graph, masks) >= ratio * budget_model(graph, "macs").full


def test_uniform_scope_touches_every_group() -> None:
    graph = graphs.chain(4, 200, 4, 50)
    masks = allocate(graph, random_scores(graph), ratio=0.4, scope="uniform")
    assert not any(mask.all() for mask in masks.values())


def test_global_scope_keeps_channels_that_save_nothing() -> None:
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
        {"alike": "same"},
        {"min_channels": {"c0": 0}},
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


def test_an_unreachable_ratio_is_refused_with_the_largest_one_and_the_pins() -> None:
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
