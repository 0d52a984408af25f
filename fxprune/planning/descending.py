"""In which order each group gives up its channels, and how many of them have to stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import Mask
from fxprune.axes.expressions import Axis
from fxprune.cost.budgets import CostModel, WidthLeaf
from fxprune.criteria.base import removal_order
from fxprune.planning.limits import Limits
from fxprune.planning.protecting import protected_channels
from fxprune.planning.selecting import IntArray, Staircase, StaircaseCost, StepSequence

FloatArray = NDArray[np.float64]


def score_staircase(graph: ChannelGraph, scores: Mapping[Group, FloatArray], limits: Limits) -> Staircase:
    """Ascending scores; channels without which some dim would become empty stay."""
    protected = _protected(graph, scores, limits)
    orders = [_moved_last(removal_order(scores[g]), protected[g]) for g in graph.groups]
    return Staircase(graph.groups, orders, [limits.steps(g, int(protected[g].sum())) for g in graph.groups])


def frugal_staircase(
    graph: ChannelGraph, scores: Mapping[Group, FloatArray], limits: Limits, model: CostModel
) -> Staircase:
    """As :func:`score_staircase`, but the channels that stay to the end are those that cost least.

    Channels of one group cost the same unless gathers hold some of them more often than others. For those this reaches
    ratios that the order of scores alone would not (greedily: the least cost is that of a set cover).
    """
    costs = _channel_costs(graph, model)
    protected = _protected(graph, {group: -cost for group, cost in costs.items()}, limits)
    steps = [limits.steps(g, int(protected[g].sum())) for g in graph.groups]
    orders: list[IntArray] = []
    for group, levels in zip(graph.groups, steps, strict=True):
        order = removal_order(scores[group])
        rank = np.argsort(order, kind="stable")
        costly_first = _moved_last(np.lexsort((rank, -costs[group])), protected[group])
        stays = np.zeros(group.size, dtype=np.bool_)
        stays[costly_first[levels[-1] :]] = True
        orders.append(_moved_last(order, stays))
    return Staircase(graph.groups, orders, steps)


def _protected(graph: ChannelGraph, preference: Mapping[Group, FloatArray], limits: Limits) -> dict[Group, Mask]:
    """Per group the channels that keep every tensor dim and every contracted dim from becoming empty."""
    free = {group.variable: preference[group] for group in graph.groups if group not in limits.frozen}
    protected = protected_channels(_axes(graph), free, graph.pairs)
    none = {group: np.zeros(group.size, dtype=np.bool_) for group in limits.frozen}
    return {group: none[group] if group in none else protected[group.variable] for group in graph.groups}


def _axes(graph: ChannelGraph) -> Iterator[Axis]:
    """Every axis that must keep an element."""
    yield from graph.activations
    for axes in graph.tensors.values():
        yield from axes
    for term in graph.macs:
        yield from term.axes


def _moved_last(order: NDArray[np.intp], last: Mask) -> IntArray:
    """The order with the marked channels moved to its end."""
    marked = last[order]
    return np.concatenate([order[~marked], order[marked]]).astype(np.int64)


def _channel_costs(graph: ChannelGraph, model: CostModel) -> dict[Group, FloatArray]:
    """What one channel of each group costs, to first order around a single kept channel each."""
    costs = {group.variable: np.zeros(group.size, dtype=np.float64) for group in graph.groups}
    leaves = np.array([leaf.expected(dict.fromkeys(costs, 1)) for leaf in model.leaves], dtype=np.float64)
    base = model.evaluate(leaves)
    for number, leaf in enumerate(model.leaves):
        if isinstance(leaf, WidthLeaf) and leaf.weights is not None and leaf.variable in costs:
            more = leaves.copy()
            more[number] += 1
            costs[leaf.variable] += leaf.weights * (model.evaluate(more) - base)
    return {group: costs[group.variable] for group in graph.groups}


@dataclass(frozen=True)
class Goal:
    """How much of a cost must go."""

    cost: StaircaseCost
    full: float
    need: float

    def saved(self, levels: IntArray) -> float:
        """What is saved at these levels."""
        return self.full - self.cost.at(levels)


def paying(stairs: Staircase, goals: Sequence[Goal]) -> NDArray[np.bool_]:
    """Which groups save anything at all."""
    lowest = np.diag(stairs.heights)
    return np.array([any(goal.saved(levels) > 0 for goal in goals) for levels in lowest], dtype=np.bool_)


def descend(sequence: StepSequence, goals: Sequence[Goal], groups: int) -> IntArray:
    """The levels after the fewest moves with which all goals are met; they are within reach.

    The steps are the beginning of the sequence and nothing else, whatever single steps cost: a budget that asks for
    more takes the same steps and then others.
    """

    def short(moves: int) -> bool:
        levels = sequence.levels(moves, groups)
        return any(goal.saved(levels) < goal.need for goal in goals)

    low, high = -1, len(sequence.ends)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if short(middle) else (low, middle)
    return sequence.levels(high, groups)


def return_idle(sequence: StepSequence, goals: Sequence[Goal], levels: IntArray) -> IntArray:
    """The levels with every step back without which as much is saved (of memory, or latency), the latest first."""
    levels = levels.copy()
    last = {int(owner): place for place, owner in enumerate(sequence.owners[: int(levels.sum())])}
    for group in sorted(last, key=lambda g: -last[g]):
        while levels[group] and _as_good(levels, group, goals):
            levels[group] -= 1
    return levels


def _as_good(levels: IntArray, group: int, goals: Sequence[Goal]) -> bool:
    back = levels.copy()
    back[group] -= 1
    return all(goal.saved(back) >= goal.saved(levels) for goal in goals)
