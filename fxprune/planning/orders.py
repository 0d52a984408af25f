"""In which order each group gives up its units, and how many of them have to stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from fxprune.axes.elements import Mask
from fxprune.axes.expressions import Axis
from fxprune.cost import CostModel, WidthLeaf
from fxprune.criteria.ordering import removal_order
from fxprune.groups import Group
from fxprune.planning.budgets import PlannedGraph
from fxprune.planning.limits import Limits
from fxprune.planning.protecting import protected_units
from fxprune.planning.staircase import IntArray, Staircase

__all__ = ["frugal_staircase", "score_staircase"]

FloatArray = NDArray[np.float64]


def score_staircase(graph: PlannedGraph, scores: Mapping[Group, FloatArray], limits: Limits) -> Staircase:
    """Ascending scores; units without which some dim would become empty stay."""
    protected = _protected(graph, scores, limits)
    orders = [_moved_last(removal_order(scores[g]), protected[g]) for g in graph.groups]
    return Staircase(graph.groups, orders, [limits.steps(g, int(protected[g].sum())) for g in graph.groups])


def frugal_staircase(
    graph: PlannedGraph, scores: Mapping[Group, FloatArray], limits: Limits, model: CostModel
) -> Staircase:
    """As :func:`score_staircase`, but the units that stay to the end are those that cost least.

    Units of one group cost the same unless gathers hold some of them more often than others. For those this reaches
    ratios that the order of scores alone would not (greedily: the least cost is that of a set cover).
    """
    costs = _unit_costs(graph, model)
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


def _protected(graph: PlannedGraph, preference: Mapping[Group, FloatArray], limits: Limits) -> dict[Group, Mask]:
    """Per group the units that keep every tensor dim and every contracted dim from becoming empty."""
    free = {group.variable: preference[group] for group in graph.groups if group not in limits.frozen}
    protected = protected_units(_axes(graph), free, graph.pairs)
    none = {group: np.zeros(group.size, dtype=np.bool_) for group in limits.frozen}
    return {group: none[group] if group in none else protected[group.variable] for group in graph.groups}


def _axes(graph: PlannedGraph) -> Iterator[Axis]:
    """Every axis that must keep an element."""
    yield from graph.activations
    for axes in graph.tensors.values():
        yield from axes
    for term in graph.macs:
        yield from term.axes


def _moved_last(order: NDArray[np.intp], last: Mask) -> IntArray:
    """The order with the marked units moved to its end."""
    marked = last[order]
    return np.concatenate([order[~marked], order[marked]]).astype(np.int64)


def _unit_costs(graph: PlannedGraph, model: CostModel) -> dict[Group, FloatArray]:
    """What one unit of each group costs, to first order around a single kept unit each."""
    costs = {group.variable: np.zeros(group.size, dtype=np.float64) for group in graph.groups}
    leaves = np.array([leaf.expected(dict.fromkeys(costs, 1)) for leaf in model.leaves], dtype=np.float64)
    base = model.evaluate(leaves)
    for number, leaf in enumerate(model.leaves):
        if isinstance(leaf, WidthLeaf) and leaf.weights is not None and leaf.variable in costs:
            more = leaves.copy()
            more[number] += 1
            costs[leaf.variable] += leaf.weights * (model.evaluate(more) - base)
    return {group: costs[group.variable] for group in graph.groups}
