"""The allocator: scores and a budget in, a mask per group out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fxprune.axes.elements import Mask
from fxprune.cost import CostModel
from fxprune.criteria.selecting import Selection
from fxprune.errors import BudgetError, CriterionError
from fxprune.groups import Group
from fxprune.planning.budgets import PlannedGraph, budget_model, check_ratio
from fxprune.planning.descending import descend
from fxprune.planning.excluding import excluded_groups
from fxprune.planning.limits import Limits
from fxprune.planning.orders import frugal_staircase, score_staircase
from fxprune.planning.returning import give_back_units
from fxprune.planning.selecting import selection_scores
from fxprune.planning.sequence import step_sequence
from fxprune.planning.shortfall import out_of_reach
from fxprune.planning.staircase import Staircase, StaircaseCost

__all__ = ["allocate"]

FloatArray = NDArray[np.float64]


def allocate(
    graph: PlannedGraph,
    scores: Mapping[Group, FloatArray] | Selection | None,
    *,
    ratio: float,
    budget: str = "macs",
    scope: str = "global",
    residual: str = "coupled",
    exclude: Sequence[str] = (),
    round_to: int = 1,
    min_channels: int = 1,
    max_ratio: float | Mapping[str, float] = 1.0,
) -> dict[Group, Mask]:
    """Choose the units that stay.

    At least ``ratio`` of the budget is removed, and the overshoot is less than the cheapest step that could go (a
    uniform run does not make a group whole again for that). With "latency" steps are as large as the multiple that
    kernels round widths up to.
    Equal inputs give equal masks: ties between groups go by their order, ties in a group to the lowest index.

    Args:
        graph: the channel graph.
        scores: per group one number per unit, higher = keep; or a selection, whose knob is set to meet the budget; None
            without weights (then shares are uniform and the lowest indices stay).
        ratio: fraction of the budget to remove, ``0 <= ratio < 1``.
        budget: "macs", "params", "channels", "memory" or "latency".
        scope: "global" ranks the units of all groups together; "uniform" takes the same share of each group, rounded
            up, until the budget holds.
        residual: "inner" keeps the width of every group that crosses an addition.
        exclude: patterns of module and parameter paths whose output channels stay.
        round_to: a narrowed group's width is a multiple of this.
        min_channels: a narrowed group keeps at least this many units.
        max_ratio: at most this share of a group's units goes; a mapping gives it by the names of groups.

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
    vectors = {g: model.vectors[g.variable] for g in graph.groups if g.variable in model.vectors}
    limits = Limits(round_to, min_channels, _known(max_ratio, graph), _frozen(graph, residual, exclude), vectors)
    uniform = _is_uniform(scope) or scores is None
    need = ratio * model.full
    if scores is not None and not isinstance(scores, Mapping):
        scores = selection_scores(scores, graph, model, limits, need)
    values = _values(graph, scores)
    stairs = score_staircase(graph, values, limits)
    if _reach(model, stairs) < need:
        stairs = frugal_staircase(graph, values, limits, model)
    if ratio > 0 and not 0 < _reach(model, stairs) >= need:
        raise out_of_reach(graph, model, stairs.masks(stairs.heights), limits, asked=ratio, budget=budget)
    sequence = step_sequence(stairs, values, uniform=uniform)
    levels = descend(stairs, StaircaseCost(model, stairs), sequence, need=need, uniform=uniform)
    masks = stairs.masks(levels)
    return masks if round_to > 1 or vectors else give_back_units(model, masks, values, need=need, uniform=uniform)


def _reach(model: CostModel, stairs: Staircase) -> float:
    return model.full - StaircaseCost(model, stairs).at(stairs.heights)


def _frozen(graph: PlannedGraph, residual: str, exclude: Sequence[str]) -> frozenset[Group]:
    if residual not in ("coupled", "inner"):
        raise BudgetError(f'residual must be "coupled" or "inner", not {residual!r}')
    inner = (group for group in graph.groups if residual == "inner" and group.crosses_add)
    return excluded_groups(graph, exclude) | frozenset(inner)


def _known(max_ratio: float | Mapping[str, float], graph: PlannedGraph) -> float | Mapping[str, float]:
    names = {group.name for group in graph.groups}
    unknown = next((n for n in max_ratio if n not in names), None) if isinstance(max_ratio, Mapping) else None
    if unknown is not None:
        raise BudgetError(
            f"max_ratio names {unknown!r}, which is no channel group: it takes {', '.join(sorted(names))}"
        )
    return max_ratio


def _is_uniform(scope: str) -> bool:
    if scope not in ("global", "uniform"):
        raise BudgetError(f'scope must be "global" or "uniform", not {scope!r}')
    return scope == "uniform"


def _values(graph: PlannedGraph, scores: Mapping[Group, FloatArray] | None) -> dict[Group, FloatArray]:
    if scores is None:
        return {group: np.zeros(group.size, dtype=np.float64) for group in graph.groups}
    for group in graph.groups:
        given = scores.get(group)
        if given is None or np.shape(given) != (group.size,) or not np.isfinite(given).all():
            raise CriterionError(f"group {group.name!r} needs {group.size} finite scores, one per channel")
    return {group: np.asarray(scores[group], dtype=np.float64) for group in graph.groups}
