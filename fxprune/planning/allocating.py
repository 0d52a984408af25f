"""The allocator: from scores and a budget to a mask for each group.

Each group loses its channels in one fixed order, and some of them must stay. Steps are taken until the budget is met.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import FloatArray, Mask
from fxprune.axes.expressions import Axis, IndexArray
from fxprune.cost.budgets import CostModel, WidthLeaf, budget_model, check_ratio, goals_of
from fxprune.criteria.base import Selection, removal_order
from fxprune.errors import BudgetError, CriterionError, check_choice
from fxprune.planning.limits import Count, Limits, Share, limits_of, per_group
from fxprune.planning.protecting import protected_channels
from fxprune.planning.selecting import (
    Staircase,
    StaircaseCost,
    StepSequence,
    alike_sequence,
    out_of_reach,
    ranks,
    score_sequence,
    selection_scores,
    uniform_sequence,
)


def score_staircase(graph: ChannelGraph, scores: Mapping[Group, FloatArray], limits: Limits) -> Staircase:
    """The staircase in order of ascending scores; channels without which a dim would become empty stay."""
    protected = _protected(graph, scores, limits)
    orders = [_with_marked_last(removal_order(scores[g]), protected[g]) for g in graph.groups]
    return Staircase(graph.groups, orders, [limits.steps(g, int(protected[g].sum())) for g in graph.groups])


def frugal_staircase(
    graph: ChannelGraph, scores: Mapping[Group, FloatArray], limits: Limits, model: CostModel
) -> Staircase:
    """As :func:`score_staircase`, but the channels that must stay are the cheapest ones.

    Channels of one group cost the same unless gathers hold some of them more often than others. In that case this can
    reach ratios that the score order cannot. The choice is greedy, because the least cost is a set cover problem.
    """
    costs = _channel_costs(graph, model)
    protected = _protected(graph, {group: -cost for group, cost in costs.items()}, limits)
    steps = [limits.steps(g, int(protected[g].sum())) for g in graph.groups]
    orders: list[IndexArray] = []
    for group, levels in zip(graph.groups, steps, strict=True):
        order = removal_order(scores[group])
        rank = np.argsort(order, kind="stable")
        costly_first = _with_marked_last(np.lexsort((rank, -costs[group])), protected[group])
        orders.append(_with_marked_last(order, group.keeping(costly_first[levels[-1] :])))
    return Staircase(graph.groups, orders, steps)


def _protected(graph: ChannelGraph, preference: Mapping[Group, FloatArray], limits: Limits) -> dict[Group, Mask]:
    """For each group, the channels that must stay so that no tensor dim and no contracted dim becomes empty."""
    free = {group.variable: preference[group] for group in graph.groups if group not in limits.frozen}
    protected = protected_channels(_axes(graph), free, graph.fewest)
    return {g: g.keeping(()) if g in limits.frozen else protected[g.variable] for g in graph.groups}


def _axes(graph: ChannelGraph) -> Iterator[Axis]:
    """Every axis that must keep at least one element."""
    yield from graph.activations
    for axes in graph.tensors.values():
        yield from axes
    for term in graph.macs:
        yield from term.axes


def _with_marked_last(order: NDArray[np.intp], last: Mask) -> IndexArray:
    """The order with the marked channels moved to its end."""
    marked = last[order]
    return np.concatenate([order[~marked], order[marked]]).astype(np.int64)


def _channel_costs(graph: ChannelGraph, model: CostModel) -> dict[Group, FloatArray]:
    """The cost of each channel, to first order, at a width of one channel in each group."""
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
    """The amount of a cost that must be removed."""

    cost: StaircaseCost
    full: float
    need: float

    def saved(self, levels: IndexArray) -> float:
        """The cost saved at these levels."""
        return self.full - self.cost.at(levels)


def groups_that_save(stairs: Staircase, goals: Sequence[Goal]) -> NDArray[np.bool_]:
    """The groups whose removal of channels saves anything, as a mask."""
    lowest = np.diag(stairs.heights)
    return np.array([any(goal.saved(levels) > 0 for goal in goals) for levels in lowest], dtype=np.bool_)


def descend(sequence: StepSequence, goals: Sequence[Goal], groups: int) -> IndexArray:
    """The levels after the fewest moves that meet all goals, which must be within reach.

    The steps taken are always a prefix of the sequence, whatever single steps cost: a larger budget takes the same
    steps and then more.
    """

    def short(moves: int) -> bool:
        levels = sequence.levels(moves, groups)
        return any(goal.saved(levels) < goal.need for goal in goals)

    low, high = -1, len(sequence.ends)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if short(middle) else (low, middle)
    return sequence.levels(high, groups)


def undo_useless_steps(sequence: StepSequence, goals: Sequence[Goal], levels: IndexArray) -> IndexArray:
    """Give back, latest first, every step that saves nothing in the end (of memory or latency)."""
    levels = levels.copy()
    last = {int(owner): place for place, owner in enumerate(sequence.owners[: int(levels.sum())])}
    for group in sorted(last, key=lambda g: -last[g]):
        while levels[group] and _is_as_good_without(levels, group, goals):
            levels[group] -= 1
    return levels


def _is_as_good_without(levels: IndexArray, group: int, goals: Sequence[Goal]) -> bool:
    back = levels.copy()
    back[group] -= 1
    return all(goal.saved(back) >= goal.saved(levels) for goal in goals)


Scores = Mapping[Group, FloatArray]
# A router sends each token to a fixed number of experts: removing experts saves nothing of these budgets.
_OF_TIME = frozenset(("macs", "latency"))


def allocate(
    graph: ChannelGraph,
    scores: Scores | Selection | None,
    *,
    ratio: float | Mapping[str, float] | None = None,
    budget: str | Mapping[str, float] = "macs",
    scope: str = "global",
    alike: str = "free",
    residual: str = "coupled",
    exclude: Sequence[str] = (),
    round_to: Count | str = 1,
    multiple: int = 8,
    min_channels: Count = 1,
    max_ratio: Share = 1.0,
) -> dict[Group, Mask]:
    """Choose the channels that stay.

    Steps are taken in the order of the scores, ties in the order of the groups, only until the budget is met.
    Equal inputs give equal masks. A larger ratio takes the same steps and then more, so its kept channels are a subset
    (except for "memory" and "latency", which are not sums over steps: steps that save nothing in the end are given
    back). With "latency", a step is the multiple that kernels round widths up to.

    Whole experts, and others whose weights the network picks by number, are not removed for budgets of time alone.

    Args:
        graph: the channel graph.
        scores: per group one number per channel, higher = keep; or a selection, whose knob is set to meet the (first)
            budget; None without weights (then shares are uniform and the lowest indices stay).
        multiple: what "auto" rounds wide groups to; less for narrow groups, or for all to reach the budget.
        ratio, budget, scope, alike, residual, exclude, round_to, min_channels, max_ratio: as for fxprune.compile.

    Returns:
        For every group of the graph, a boolean mask of shape ``(group.size,)``; True = keep.

    Raises:
        RatioError, BudgetError, ExcludeError: an option makes no sense, or the ratio is out of reach.
        CriterionError: the scores do not fit the groups.
    """
    check_choice(BudgetError, "scope", scope, ("global", "uniform"))
    check_choice(BudgetError, "alike", alike, ("free", "equal"))
    goals = {} if isinstance(ratio, Mapping) else goals_of(ratio, budget)
    if goals and goals.keys() <= _OF_TIME:
        exclude = [*exclude, *(group.name for group in graph.groups if group.numbered)]
    limits = functools.partial(
        limits_of,
        graph,
        exclude=exclude,
        residual=residual,
        round_to=round_to,
        min_channels=min_channels,
        max_ratio=max_ratio,
    )
    if isinstance(ratio, Mapping):
        return _shares_removed(graph, scores, ratio, limits(multiple=1))
    task = _Task(graph, scores, goals)
    while True:
        tried = limits(multiple=multiple, vectors=task.vectors)
        stairs, values = task.stairs(tried)
        if round_to != "auto" or multiple == 1 or not task.shortfall(stairs):
            break
        multiple //= 2
    if (short := task.shortfall(stairs)) is not None:
        raise out_of_reach(graph, short, stairs.masks(stairs.heights), tried, asked=task.fractions[short])
    return stairs.masks(task.levels(stairs, values, uniform=scope == "uniform" or scores is None, alike=alike))


class _Task:
    """One allocation: the goals and the options."""

    def __init__(self, graph: ChannelGraph, scores: Scores | Selection | None, fractions: Mapping[str, float]) -> None:
        self.graph = graph
        self.scores = scores
        self.fractions = fractions
        self.models = {name: budget_model(graph, name) for name in fractions}
        by_variable = {v: n for model in self.models.values() for v, n in model.vectors.items()}
        self.vectors = {g: by_variable[g.variable] for g in graph.groups if g.variable in by_variable}

    def stairs(self, limits: Limits) -> tuple[Staircase, dict[Group, FloatArray]]:
        """The staircase by scores, or a frugal one if that cannot meet the budget; and the scores."""
        scores = self.scores
        if scores is not None and not isinstance(scores, Mapping):
            first, fraction = next(iter(self.fractions.items()))
            model = self.models[first]
            scores = selection_scores(scores, self.graph, model, limits, fraction * model.full)
        values = _values(self.graph, scores)
        stairs = score_staircase(self.graph, values, limits)
        short = self.shortfall(stairs)
        return (stairs if short is None else frugal_staircase(self.graph, values, limits, self.models[short])), values

    def shortfall(self, stairs: Staircase) -> str | None:
        """The first budget that cannot be met, else None."""
        for (name, fraction), goal in zip(self.fractions.items(), self._goals(stairs), strict=True):
            reach = goal.saved(stairs.heights)
            if fraction > 0 and not 0 < reach >= goal.need:
                return name
        return None

    def levels(self, stairs: Staircase, values: Scores, *, uniform: bool, alike: str) -> IndexArray:
        """The level of each group."""
        goals = self._goals(stairs)
        sequence = self._sequence(stairs, values, goals, uniform, alike)
        levels = descend(sequence, goals, len(stairs.groups))
        if uniform or alike == "equal" or not {"memory", "latency"} & self.fractions.keys():
            return levels
        return undo_useless_steps(sequence, goals, levels)

    def _sequence(
        self, stairs: Staircase, values: Scores, goals: Sequence[Goal], uniform: bool, alike: str
    ) -> StepSequence:
        if uniform:
            return uniform_sequence(stairs)
        return (alike_sequence if alike == "equal" else score_sequence)(stairs, values, groups_that_save(stairs, goals))

    def _goals(self, stairs: Staircase) -> list[Goal]:
        models = ((self.models[name], fraction) for name, fraction in self.fractions.items())
        return [Goal(StaircaseCost(model, stairs), model.full, fraction * model.full) for model, fraction in models]


def _shares_removed(
    graph: ChannelGraph, scores: Scores | Selection | None, ratio: Mapping[str, float], limits: Limits
) -> dict[Group, Mask]:
    """Remove at least the given share of each group, lowest scores first."""
    if scores is not None and not isinstance(scores, Mapping):
        scores = ranks(graph, scores.preference)
    shares = {g: check_ratio(share) for g, share in per_group(graph, "ratio", ratio, 0.0).items()}
    stairs = score_staircase(graph, _values(graph, scores), limits)
    levels = np.zeros(len(graph.groups), dtype=np.int64)
    for number, (group, steps) in enumerate(zip(stairs.groups, stairs.steps, strict=True)):
        if group in limits.frozen:
            continue
        # The small number: 0.07 * 100 is 7.000000000000001, and seven are enough.
        levels[number] = np.searchsorted(steps, math.ceil(shares[group] * group.size - 1e-9))
        if levels[number] == len(steps):
            raise BudgetError(
                f"ratio {shares[group]:g} of the channels of {group.name!r} is out of reach: at most {steps[-1]} of "
                f"its {group.size} can be removed. Limits in force: {', '.join(limits.given) or 'no width is empty'}.",
                reachable=steps[-1] / group.size,
            )
    return stairs.masks(levels)


def _values(graph: ChannelGraph, scores: Scores | None) -> dict[Group, FloatArray]:
    if scores is None:
        return {group: np.zeros(group.size, dtype=np.float64) for group in graph.groups}
    for group in graph.groups:
        given = scores.get(group)
        if given is None or np.shape(given) != (group.size,) or not np.isfinite(given).all():
            raise CriterionError(f"group {group.name!r} needs {group.size} finite scores, one per channel")
    return {group: np.asarray(scores[group], dtype=np.float64) for group in graph.groups}
