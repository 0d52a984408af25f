"""Staircases of widths, step sequences over them, and the search for a selection's knob setting that meets the budget.

In a staircase, every group loses its channels in one fixed order, and its level says how many are removed.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxprune.analysis.groups import Group, PinnedWidth, position
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import FloatArray, Mask
from fxprune.axes.expressions import Channels, IndexArray
from fxprune.cost.budgets import CostModel, GatheredLeaf, WidthLeaf, budget_model
from fxprune.criteria.base import Ladder, Problem, Selection, removal_order
from fxprune.errors import BudgetError
from fxprune.planning.limits import Limits


class Staircase:
    """The groups, the order in which each loses its channels, and the widths that are allowed.

    ``steps``: per group, the number of channels removed at each level, 0 at level 0; ``heights``: its highest level.
    """

    def __init__(self, groups: Sequence[Group], orders: Sequence[IndexArray], steps: Sequence[IndexArray]) -> None:
        self.groups = tuple(groups)
        self.orders = tuple(orders)
        self.steps = tuple(steps)
        self.heights: IndexArray = np.array([len(s) - 1 for s in steps], dtype=np.int64)
        self._flat = np.concatenate([*steps, np.zeros(0, dtype=np.int64)])
        self._starts = np.cumsum([0, *(len(s) for s in steps)], dtype=np.int64)[:-1]

    def removed(self, levels: IndexArray) -> IndexArray:
        """The number of channels of each group that are removed at these levels."""
        gone: IndexArray = self._flat[self._starts + levels]
        return gone

    def masks(self, levels: IndexArray) -> dict[Group, Mask]:
        """The masks of the channels that stay at these levels."""
        removed = self.removed(levels).tolist()
        return {g: g.without(o[:gone]) for g, o, gone in zip(self.groups, self.orders, removed, strict=True)}


class StaircaseCost:
    """The cost at given levels. It is exact for gathers too: channel weights are summed in the group's order."""

    def __init__(self, model: CostModel, stairs: Staircase) -> None:
        self._model = model
        self._stairs = stairs
        self._base = np.zeros(len(model.leaves), dtype=np.float64)
        self._weighted: list[tuple[int, int, FloatArray]] = []
        self._gathered: list[tuple[int, GatheredLeaf]] = []
        plain: list[tuple[int, int]] = []
        place = {group.variable: number for number, group in enumerate(stairs.groups)}
        for number, leaf in enumerate(model.leaves):
            if isinstance(leaf, GatheredLeaf):
                self._gathered.append((number, leaf))
                continue
            self._base[number] = leaf.exact({})
            if leaf.variable in place:
                self._follow(number, leaf, place[leaf.variable], plain)
        self._plain = np.array([number for number, _ in plain], dtype=np.intp)
        self._plain_group = np.array([group for _, group in plain], dtype=np.intp)

    def _follow(self, number: int, leaf: WidthLeaf, group: int, plain: list[tuple[int, int]]) -> None:
        if leaf.weights is None:
            plain.append((number, group))
            return
        lost = np.cumsum(leaf.weights[self._stairs.orders[group]])
        self._weighted.append((number, group, np.concatenate([np.zeros(1), lost])))

    def at(self, levels: IndexArray) -> float:
        """The cost when each group is at its level."""
        removed = self._stairs.removed(levels)
        leaves = self._base.copy()
        leaves[self._plain] -= removed[self._plain_group]
        for number, group, lost in self._weighted:
            leaves[number] -= lost[removed[group]]
        if self._gathered:
            masks: dict[Channels, Mask] = {g.variable: m for g, m in self._stairs.masks(levels).items()}
            for number, gathered in self._gathered:
                leaves[number] = gathered.exact(masks)
        return self._model.evaluate(leaves)


def selection_scores(
    selection: Selection, graph: ChannelGraph, model: CostModel, limits: Limits, need: float
) -> dict[Group, FloatArray]:
    """Scores with which the allocator follows a selection, within the limits and at the exact budget.

    The knob is set to the first setting that saves ``need`` (or to the last one). Channels removed at that setting
    score below 1, kept ones above, ordered by the selection's preference. So the allocator keeps some of the former if
    the setting saves too much, and removes some of the latter if limits hold others back.
    """
    search = _Search(selection, graph, model, limits, need)
    masks = search.run()
    order = ranks(graph, selection.preference)
    return {g: order[g] + masks.get(g, g.without(())) for g in graph.groups}


class _Search:
    def __init__(
        self, selection: Selection, graph: ChannelGraph, model: CostModel, limits: Limits, need: float
    ) -> None:
        self._selection = selection
        self._model = model
        self._need = need
        self._steps = {g: limits.steps(g) for g in graph.groups}
        groups = tuple(g for g in graph.groups if g not in limits.frozen)
        self._problem = Problem(groups, self._saved, lambda g: g.size - int(self._steps[g][-1]))

    def run(self) -> Mapping[Group, Mask]:
        """The channels that stay at the first setting that saves enough, or at the last setting of the last ladder."""
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
        """The masks at the first setting that saves enough; the last setting of the ladder must."""

        def enough(rung: int) -> bool:
            return self._saved(self._limited(ladder.keep(rung))) >= self._need

        rungs = range(len(ladder) - 1)
        if ladder.monotone:
            return ladder.keep(bisect_left(rungs, True, key=enough))
        return ladder.keep(next(filter(enough, rungs), len(rungs)))

    def _saved(self, masks: Mapping[Group, Mask]) -> float:
        return self._model.full - self._model.exact({g.variable: mask for g, mask in masks.items()})

    def _limited(self, masks: Mapping[Group, Mask]) -> dict[Group, Mask]:
        """The masks with channels added back, most preferred first, as far as the limits require."""
        found: dict[Group, Mask] = {}
        for group, mask in masks.items():
            steps = self._steps[group]
            gone = int(steps[np.searchsorted(steps, np.count_nonzero(~mask), side="right") - 1])
            order = removal_order(self._selection.preference[group] + mask * 1e9)
            found[group] = group.without(order[:gone])
        return found


def ranks(graph: ChannelGraph, preference: Mapping[Group, FloatArray]) -> dict[Group, FloatArray]:
    """Preferences of all groups as ranks in [0, 1); equal ones stay equal."""
    values = np.concatenate([np.zeros(0), *(preference[g] for g in graph.groups)])
    known, place = np.unique(values, return_inverse=True)
    ranks = np.split(place / max(len(known), 1), np.cumsum([g.size for g in graph.groups])[:-1])
    return {group: rank.astype(np.float64) for group, rank in zip(graph.groups, ranks, strict=True)}


@dataclass(frozen=True)
class StepSequence:
    """Steps in the order in which they are taken."""

    owners: IndexArray  # group numbers; the n-th occurrence of a group is its n-th step
    # The lengths at which the sequence may stop, ascending, its full length last; steps in between go together.
    ends: IndexArray

    def levels(self, moves: int, groups: int) -> IndexArray:
        """The level of each group after that many moves; a move is all steps from one end to the next."""
        taken = self.owners[: self.ends[moves - 1]] if moves else self.owners[:0]
        return np.bincount(taken, minlength=groups).astype(np.int64)


def score_sequence(stairs: Staircase, scores: Mapping[Group, FloatArray], pays: NDArray[np.bool_]) -> StepSequence:
    """Steps by the mean score of their channels, ties in the groups' order; without groups that save nothing."""
    owners, _, keys = _steps(stairs, _score_keys(stairs, scores))
    order = np.argsort(keys, kind="stable")
    order = order[pays[owners[order]]]
    return StepSequence(owners[order], np.arange(1, len(order) + 1, dtype=np.int64))


def alike_sequence(stairs: Staircase, scores: Mapping[Group, FloatArray], pays: NDArray[np.bool_]) -> StepSequence:
    """As :func:`score_sequence`, but the n-th steps of groups in the same place of repeated blocks are one move; its
    score is their mean."""
    kinds: dict[Hashable, int] = {}
    places = [_place(g) if stairs.heights[n] else ("whole", n) for n, g in enumerate(stairs.groups)]
    kind = np.array([kinds.setdefault(place, len(kinds)) for place in places], dtype=np.int64)
    lowest = np.full(len(kinds), np.iinfo(np.int64).max)
    np.minimum.at(lowest, kind, stairs.heights)
    owners, number, keys = _steps(stairs, _score_keys(stairs, scores))
    kept = (number < lowest[kind[owners]]) & np.isin(kind[owners], kind[pays])
    owners, number, keys = owners[kept], number[kept], keys[kept]
    _, move = np.unique(np.stack([kind[owners], number]), axis=1, return_inverse=True)
    move = move.reshape(-1)
    means = np.bincount(move, keys) / np.bincount(move)
    order = np.lexsort((owners, move, means[move]))
    return StepSequence(owners[order], _ends(move[order]))


def uniform_sequence(stairs: Staircase) -> StepSequence:
    """Steps by the share of the group that is removed half-way through them: at each end all groups have lost the same
    share, rounded to the nearest step, and groups of equal size have equal width."""
    keys = [(steps[:-1] + steps[1:]) / group.size for group, steps in zip(stairs.groups, stairs.steps, strict=True)]
    owners, _, flat = _steps(stairs, keys)
    order = np.argsort(flat, kind="stable")
    return StepSequence(owners[order], _ends(flat[order]))


def _ends(marks: NDArray[np.generic]) -> IndexArray:
    """The positions at which runs of equal marks end."""
    changes: IndexArray = np.flatnonzero(marks[1:] != marks[:-1]) + 1
    return np.concatenate([changes, [len(marks)] if len(marks) else []]).astype(np.int64)


def _steps(stairs: Staircase, keys: list[FloatArray]) -> tuple[IndexArray, IndexArray, FloatArray]:
    """For every step: the number of its group, its number within the group, and its key."""
    owners = np.repeat(np.arange(len(keys), dtype=np.int64), stairs.heights)
    number = np.concatenate([*(np.arange(len(k), dtype=np.int64) for k in keys), np.zeros(0, dtype=np.int64)])
    return owners, number, np.concatenate([*keys, np.zeros(0, dtype=np.float64)])


def _score_keys(stairs: Staircase, scores: Mapping[Group, FloatArray]) -> list[FloatArray]:
    triples = zip(stairs.groups, stairs.orders, stairs.steps, strict=True)
    return [_block_means(scores[group][order], steps) for group, order, steps in triples]


def _block_means(ascending: FloatArray, steps: IndexArray) -> FloatArray:
    """The mean score of the channels that each step removes."""
    if len(steps) == 1:
        return np.zeros(0, dtype=np.float64)
    totals = np.add.reduceat(ascending[: steps[-1]], steps[:-1])
    means: FloatArray = totals / np.diff(steps)
    # Ascending by construction; rounding errors must not swap two steps of one group.
    return np.maximum.accumulate(means)


def _place(group: Group) -> Hashable:
    """A key for the place in repeated blocks: equal if size, traits and members are, up to numbers in paths."""
    members = sorted((_numberless(m.tensor), m.dim, m.role, m.axis.size) for m in group.members)
    return group.size, group.crosses_add, group.crosses_norm, position(group), tuple(members)


def _numberless(tensor: str) -> str:
    """The path without its numbers, except in a layer's own name: conv1 and conv2 are different places in a block."""
    *above, layer, name = ["", *tensor.split(".")]
    blocks = re.sub(r"\d+", "#", ".".join(above))
    return f"{blocks}.{'#' if layer.isdecimal() else layer}.{name}"


_SHOWN = 4


def out_of_reach(
    graph: ChannelGraph, budget: str, narrowest: Mapping[Group, Mask], limits: Limits, *, asked: float
) -> BudgetError:
    """The error to raise; ``narrowest``: the masks with every group as narrow as its limits allow."""
    model = budget_model(graph, budget)
    if model.full <= 0:
        return BudgetError(f"nothing to remove: this network has no {budget} that fxprune counts", reachable=0.0)
    masks = {group.variable: mask for group, mask in narrowest.items()}
    reachable = _reachable(model.full - model.exact(masks), model.full)
    pinned = _most_costly_first(graph, model.by_owner(masks))
    shown = math.floor(reachable * 1e4) / 1e4
    message = f"ratio {asked:g} of {budget} is out of reach: at most {shown:g} can be removed."
    if pinned:
        widths = "; ".join(f"{p.tensor} dim {p.dim} ({p.size} wide): {p.reason}" for p in pinned[:_SHOWN])
        more = f"; and {len(pinned) - _SHOWN} more" if len(pinned) > _SHOWN else ""
        message += f" Pinned widths that stand in the way, most costly first: {widths}{more}."
    message += _unseen(graph, model.full) if budget == "macs" else ""
    message += f" Limits in force: {', '.join(limits.given)}." if limits.given else ""
    return BudgetError(message, reachable=reachable, pinned=[f"{p.tensor} dim {p.dim}" for p in pinned])


def _unseen(graph: ChannelGraph, full: float) -> str:
    """In words, the opaque parts whose cost is constant; empty if there are none."""
    held = sorted(((term.coefficient / full, term.owner) for term in graph.macs if not term.axes), reverse=True)
    parts = ", ".join(f"{owner} ({share:.1%} of the whole)" for share, owner in held[:_SHOWN])
    return f" Opaque parts, of which nothing can go: {parts}." if held else ""


def _reachable(saved: float, full: float) -> float:
    """The largest ratio whose product with the full cost does not exceed the possible saving."""
    ratio = max(saved, 0.0) / full
    while ratio * full > saved and ratio > 0:
        ratio = math.nextafter(ratio, 0.0)
    return ratio


def _most_costly_first(graph: ChannelGraph, costs: Mapping[str, float]) -> list[PinnedWidth]:
    def rank(pinned: PinnedWidth) -> tuple[float, int, str, int]:
        elements = math.prod(graph.shapes.get(pinned.tensor, (pinned.size,)))
        return -_owner_cost(pinned.tensor, costs), -elements, pinned.tensor, pinned.dim

    return sorted(graph.pinned, key=rank)


def _owner_cost(tensor: str, costs: Mapping[str, float]) -> float:
    """The remaining cost of a tensor, or of the module that it belongs to."""
    path = tensor
    while path not in costs and "." in path:
        path = path.rpartition(".")[0]
    return costs.get(path, 0.0)
