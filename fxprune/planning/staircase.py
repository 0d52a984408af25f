"""Widths as a staircase: every group gives up its channels in one order, and its level says how many are gone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fxprune.analysis.groups import Group
from fxprune.axes.elements import Mask
from fxprune.axes.expressions import Channels
from fxprune.cost.budgets import CostModel, GatheredLeaf, WidthLeaf

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


class Staircase:
    """The groups, the order in which each gives up its channels, and the widths it may stop at.

    Attributes:
        groups: one staircase each.
        orders: per group, its channels in the order they go.
        steps: per group, how many channels are gone at each level; level 0 is the whole group.
        heights: per group, its highest level.
    """

    def __init__(self, groups: Sequence[Group], orders: Sequence[IntArray], steps: Sequence[IntArray]) -> None:
        self.groups = tuple(groups)
        self.orders = tuple(orders)
        self.steps = tuple(steps)
        self.heights: IntArray = np.array([len(s) - 1 for s in steps], dtype=np.int64)
        self._flat = np.concatenate([*steps, np.zeros(0, dtype=np.int64)])
        self._starts = np.cumsum([0, *(len(s) for s in steps)], dtype=np.int64)[:-1]

    def removed(self, levels: IntArray) -> IntArray:
        """How many channels of each group are gone at these levels."""
        gone: IntArray = self._flat[self._starts + levels]
        return gone

    def masks(self, levels: IntArray) -> dict[Group, Mask]:
        """Which channels of each group stay at these levels."""
        masks: dict[Group, Mask] = {}
        for group, order, gone in zip(self.groups, self.orders, self.removed(levels).tolist(), strict=True):
            masks[group] = np.ones(group.size, dtype=np.bool_)
            masks[group][order[:gone]] = False
        return masks


class StaircaseCost:
    """The cost at given levels, exact for gathered channels too: what one weighs is summed along its group's order."""

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

    def at(self, levels: IntArray) -> float:
        """The cost when each group stands at its level."""
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
