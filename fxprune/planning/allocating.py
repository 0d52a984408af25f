"""The allocator: scores and a budget in, a mask per group out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fxprune.axes.elements import Mask
from fxprune.criteria.ordering import removal_order
from fxprune.errors import BudgetError, CriterionError
from fxprune.groups import Group
from fxprune.planning.budgets import PlannedGraph, budget_model, check_ratio
from fxprune.planning.descending import descend
from fxprune.planning.excluding import excluded_groups
from fxprune.planning.limits import Limits
from fxprune.planning.protecting import protected_units
from fxprune.planning.shortfall import out_of_reach
from fxprune.planning.staircase import IntArray, Staircase, StaircaseCost

__all__ = ["allocate"]

FloatArray = NDArray[np.float64]


def allocate(
    graph: PlannedGraph,
    scores: Mapping[Group, FloatArray] | None,
    *,
    ratio: float,
    budget: str = "macs",
    scope: str = "global",
    residual: str = "coupled",
    exclude: Sequence[str] = (),
    round_to: int = 1,
    min_channels: int = 1,
    max_ratio: float = 1.0,
) -> dict[Group, Mask]:
    """Choose the units that stay.

    At least ``ratio`` of the budget is removed, and the overshoot is less than the cheapest step that could go.
    Equal inputs give equal masks: ties between groups go by their order, ties in a group to the lowest index.

    Args:
        graph: the channel graph.
        scores: per group one number per unit, higher = keep; None without weights (then shares are uniform and the
            lowest indices stay).
        ratio: fraction of the budget to remove, ``0 <= ratio < 1``.
        budget: "macs", "params" or "channels".
        scope: "global" ranks the units of all groups together; "uniform" takes the same share of each group, rounded
            up, until the budget holds.
        residual: "inner" keeps the width of every group that crosses an addition.
        exclude: patterns of module and parameter paths whose output channels stay.
        round_to: a narrowed group's width is a multiple of this.
        min_channels: a narrowed group keeps at least this many units.
        max_ratio: at most this share of a group's units goes.

    Returns:
        For every group of the graph a boolean mask of shape ``(group.size,)``; True stays.

    Raises:
        RatioError: ``ratio`` is not a number with ``0 <= ratio < 1``.
        BudgetError: an unknown budget, scope or limit, or a ratio out of reach.
        ExcludeError: a pattern matches nothing.
        CriterionError: scores that do not fit the groups.
    """
    ratio = check_ratio(ratio)
    model = budget_model(graph, budget)
    limits = Limits(round_to, min_channels, max_ratio, _frozen(graph, residual, exclude))
    stairs, keys = _staircase(graph, _scores(graph, scores), limits, _scope(scope, scores))
    cost = StaircaseCost(model, stairs)
    reach = model.full - cost.at(stairs.heights)
    if ratio > 0 and (ratio * model.full > reach or reach <= 0):
        raise out_of_reach(graph, model, stairs.masks(stairs.heights), limits, asked=ratio, budget=budget)
    idle = _scope(scope, scores) == "uniform"
    levels = descend(stairs, cost, _sequence(keys), need=ratio * model.full, idle=idle)
    return stairs.masks(levels)


def _frozen(graph: PlannedGraph, residual: str, exclude: Sequence[str]) -> frozenset[Group]:
    if residual not in ("coupled", "inner"):
        raise BudgetError(f'residual must be "coupled" or "inner", not {residual!r}')
    inner = (group for group in graph.groups if residual == "inner" and group.crosses_add)
    return excluded_groups(graph, exclude) | frozenset(inner)


def _scope(scope: str, scores: Mapping[Group, FloatArray] | None) -> str:
    if scope not in ("global", "uniform"):
        raise BudgetError(f'scope must be "global" or "uniform", not {scope!r}')
    return "uniform" if scores is None else scope


def _scores(graph: PlannedGraph, scores: Mapping[Group, FloatArray] | None) -> list[FloatArray]:
    if scores is None:
        return [np.zeros(group.size, dtype=np.float64) for group in graph.groups]
    for group in graph.groups:
        given = scores.get(group)
        if given is None or np.shape(given) != (group.size,) or not np.isfinite(given).all():
            raise CriterionError(f"group {group.name!r} needs {group.size} finite scores, one per channel")
    return [np.asarray(scores[group], dtype=np.float64) for group in graph.groups]


def _staircase(
    graph: PlannedGraph, scores: Sequence[FloatArray], limits: Limits, scope: str
) -> tuple[Staircase, list[FloatArray]]:
    """The staircase, and per group the key of each step; steps are taken in ascending order of keys."""
    protected = _protected(graph, scores)
    orders = [_last(removal_order(s), mask) for s, mask in zip(scores, protected, strict=True)]
    steps = [limits.steps(g, int(mask.sum())) for g, mask in zip(graph.groups, protected, strict=True)]
    if scope == "uniform":
        keys = [s[:-1] / group.size for s, group in zip(steps, graph.groups, strict=True)]
    else:
        keys = [_block_means(s[o], b) for s, o, b in zip(scores, orders, steps, strict=True)]
    return Staircase(graph.groups, orders, steps), keys


def _protected(graph: PlannedGraph, scores: Sequence[FloatArray]) -> list[Mask]:
    """Per group the units that keep some tensor dim or contracted dim from becoming empty."""
    axes = (axis for dims in (*graph.tensors.values(), *(term.axes for term in graph.macs)) for axis in dims)
    by_variable = {group.variable: s for group, s in zip(graph.groups, scores, strict=True)}
    protected = protected_units(axes, by_variable)
    return [protected[group.variable] for group in graph.groups]


def _last(order: IntArray, protected: Mask) -> IntArray:
    """The order with the protected units moved to its end."""
    return np.concatenate([order[~protected[order]], order[protected[order]]])


def _block_means(ascending: FloatArray, steps: IntArray) -> FloatArray:
    """The mean score of the units that go with each step."""
    if len(steps) == 1:
        return np.zeros(0, dtype=np.float64)
    totals = np.add.reduceat(ascending[: steps[-1]], steps[:-1])
    means: FloatArray = totals / np.diff(steps)
    # Ascending by construction; rounding must not turn two steps of one group around.
    return np.maximum.accumulate(means)


def _sequence(keys: Sequence[FloatArray]) -> IntArray:
    """Group numbers in the order of their steps' keys; equal keys in the order of the groups."""
    owners = np.repeat(np.arange(len(keys), dtype=np.int64), [len(k) for k in keys])
    flat = np.concatenate([*keys, np.zeros(0, dtype=np.float64)])
    sequence: IntArray = owners[np.argsort(flat, kind="stable")]
    return sequence
