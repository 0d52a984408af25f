"""Selections: the search for the setting of the knob that meets the budget."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fxprune.axes.elements import Mask
from fxprune.cost import CostModel
from fxprune.criteria.ordering import removal_order
from fxprune.criteria.selecting import Ladder, Problem, Selection
from fxprune.groups import Group
from fxprune.planning.budgets import PlannedGraph
from fxprune.planning.limits import Limits

__all__ = ["ranks", "selection_scores"]

FloatArray = NDArray[np.float64]


def selection_scores(
    selection: Selection, graph: PlannedGraph, model: CostModel, limits: Limits, need: float
) -> dict[Group, FloatArray]:
    """Scores by which the allocator makes the choice of a selection, within the limits and at the exact budget.

    The knob is set to the least that saves ``need`` (or to its end). What goes there scores below 1, what stays above,
    each by the selection's preference: so the allocator gives back what overshoots, and goes on where limits hold units
    back that were to go.
    """
    search = _Search(selection, graph, model, limits, need)
    masks = search.run()
    order = ranks(graph, selection.preference)
    return {g: order[g] + masks.get(g, np.ones(g.size, dtype=np.bool_)) for g in graph.groups}


class _Search:
    def __init__(
        self, selection: Selection, graph: PlannedGraph, model: CostModel, limits: Limits, need: float
    ) -> None:
        self._selection = selection
        self._model = model
        self._need = need
        self._steps = {g: limits.steps(g) for g in graph.groups}
        groups = tuple(g for g in graph.groups if g not in limits.frozen)
        self._problem = Problem(groups, self._saved, lambda g: g.size - int(self._steps[g][-1]))

    def run(self) -> Mapping[Group, Mask]:
        """The units that stay at the least setting that saves enough, or at the last of the last ladder."""
        best: Mapping[Group, Mask] = {}
        most = -1.0
        for ladder in self._selection.ladders(self._problem):
            last = ladder.keep(len(ladder) - 1)
            saved = self._saved(self._limited(last))
            if saved >= self._need:
                return self._lowest(ladder)
            if saved > most:
                best, most = last, saved
        return best

    def _lowest(self, ladder: Ladder) -> Mapping[Group, Mask]:
        low, high = -1, len(ladder) - 1
        while high - low > 1:
            middle = (low + high) // 2
            enough = self._saved(self._limited(ladder.keep(middle))) >= self._need
            low, high = (low, middle) if enough else (middle, high)
        return ladder.keep(high)

    def _saved(self, masks: Mapping[Group, Mask]) -> float:
        return self._model.full - self._model.exact({g.variable: mask for g, mask in masks.items()})

    def _limited(self, masks: Mapping[Group, Mask]) -> dict[Group, Mask]:
        """The masks with as many units back as the limits ask for, the most preferred first."""
        found: dict[Group, Mask] = {}
        for group, mask in masks.items():
            steps = self._steps[group]
            gone = int(steps[np.searchsorted(steps, np.count_nonzero(~mask), side="right") - 1])
            order = removal_order(self._selection.preference[group] + mask * 1e9)
            found[group] = np.ones(group.size, dtype=np.bool_)
            found[group][order[:gone]] = False
        return found


def ranks(graph: PlannedGraph, preference: Mapping[Group, FloatArray]) -> dict[Group, FloatArray]:
    """Preferences of all groups as ranks in [0, 1); equal ones stay equal."""
    values = np.concatenate([np.zeros(0), *(preference[g] for g in graph.groups)])
    known, place = np.unique(values, return_inverse=True)
    ranks = np.split(place / max(len(known), 1), np.cumsum([g.size for g in graph.groups])[:-1])
    return {group: rank.astype(np.float64) for group, rank in zip(graph.groups, ranks, strict=True)}
