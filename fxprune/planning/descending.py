"""Down the staircase until every budget is met, and not a step further."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxprune.planning.sequence import StepSequence
from fxprune.planning.staircase import IntArray, Staircase, StaircaseCost

__all__ = ["Goal", "descend", "paying", "return_idle"]


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
    """The levels with every step back without which just as much is saved, the latest first.

    Such steps are where only the largest of several sums counts, as in memory, or where a narrower width takes longer.
    """
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
