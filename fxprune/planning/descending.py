"""Down the staircase until the budget is met, and not a step further than it takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fxprune.planning.staircase import IntArray, Staircase, StaircaseCost

__all__ = ["descend"]


def descend(stairs: Staircase, cost: StaircaseCost, sequence: IntArray, *, need: float, uniform: bool) -> IntArray:
    """Levels at which at least ``need`` is saved, overshooting by less than the cheapest step that could go.

    Steps are taken in the order of ``sequence`` until one would meet the budget. If it overshoots, its group is left
    where it is and cheaper steps further on fill the gap; the cheapest of those that remain closes it. Last, steps
    that the final overshoot pays for are given back, the latest first.

    Args:
        stairs: the staircase.
        cost: its cost.
        sequence: group numbers; the n-th mention of a group is its n-th step.
        need: how much of the cost must go; within reach.
        uniform: whether all groups are to lose a share: groups that save nothing follow the sequence instead of staying
            whole, and what is given back never makes a group whole again.
    """
    return _Descent(stairs, cost, sequence, need, uniform).run()


class _Descent:
    def __init__(self, stairs: Staircase, cost: StaircaseCost, sequence: IntArray, need: float, uniform: bool) -> None:
        self.stairs = stairs
        self.cost = cost
        self.need = need
        self.levels: IntArray = np.zeros(len(stairs.groups), dtype=np.int64)
        self.full = cost.at(self.levels)
        self.pays = self._paying()
        self.least = 1 if uniform else 0
        self.sequence = sequence if uniform else sequence[self.pays[sequence]]
        self.number = _occurrences(self.sequence, len(stairs.groups))

    def run(self) -> IntArray:
        if self.need <= 0:
            return self.levels
        self.levels += self._counts(self.sequence[: self._fitting(self.sequence)])
        while self.saved(self.levels) < self.need:
            self._fill()
            self._take_cheapest()
        self._give_back()
        return self.levels

    def saved(self, levels: IntArray) -> float:
        return self.full - self.cost.at(levels)

    def _paying(self) -> NDArray[np.bool_]:
        """Which groups save anything at all."""
        lowest = [self._moved(g, int(h)) for g, h in enumerate(self.stairs.heights)]
        return np.array([self.saved(levels) > 0 for levels in lowest], dtype=np.bool_)

    def _moved(self, group: int, steps: int) -> IntArray:
        levels: IntArray = self.levels.copy()
        levels[group] += steps
        return levels

    def _counts(self, sequence: IntArray) -> IntArray:
        counts: IntArray = np.bincount(sequence, minlength=len(self.levels)).astype(np.int64)
        return counts

    def _fitting(self, pending: IntArray) -> int:
        """How many of the pending steps can be taken while the budget is not met yet (galloping, then bisection)."""
        low, high = 0, 1
        while high <= len(pending) and self._short(pending[:high]):
            low, high = high, 2 * high
        high = min(high, len(pending) + 1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._short(pending[:middle]) else (low, middle)
        return low

    def _short(self, steps: IntArray) -> bool:
        return self.saved(self.levels + self._counts(steps)) < self.need

    def _fill(self) -> None:
        """Take every step that fits below the budget, in sequence, passing over groups whose next step does not."""
        left = self.number >= self.levels[self.sequence]
        pending = self.sequence[left & self.pays[self.sequence]]
        while len(pending):
            fitting = self._fitting(pending)
            self.levels += self._counts(pending[:fitting])
            pending = pending[fitting:]
            pending = pending[pending != pending[0]] if len(pending) else pending

    def _take_cheapest(self) -> None:
        open_groups = np.flatnonzero(self.pays & (self.levels < self.stairs.heights))
        after = [self._moved(int(group), 1) for group in open_groups]
        self.levels = min(after, key=self.saved)

    def _give_back(self) -> None:
        """Return steps that the overshoot covers, group by group, the one that gave up its last unit latest first."""
        last = np.full(len(self.levels), -1, dtype=np.int64)
        taken = self.number < self.levels[self.sequence]
        last[self.sequence[taken]] = np.flatnonzero(taken)
        for group in np.argsort(-last, kind="stable").tolist():
            if last[group] >= 0 and self.pays[group]:
                self.levels[group] -= self._returnable(group)

    def _returnable(self, group: int) -> int:
        low, high = 0, 1
        most = int(self.levels[group]) - self.least
        while high <= most and self.saved(self._moved(group, -high)) >= self.need:
            low, high = high, 2 * high
        high = min(high, most + 1)
        while high - low > 1:
            middle = (low + high) // 2
            enough = self.saved(self._moved(group, -middle)) >= self.need
            low, high = (middle, high) if enough else (low, middle)
        return low


def _occurrences(sequence: IntArray, groups: int) -> IntArray:
    """For each place of the sequence how often its group was mentioned before."""
    order = np.argsort(sequence, kind="stable")
    counts = np.bincount(sequence, minlength=groups)
    starts = np.cumsum([0, *counts.tolist()])[:-1]
    number = np.empty(len(sequence), dtype=np.int64)
    number[order] = np.arange(len(sequence)) - np.repeat(starts, counts)
    return number
