"""Selections: which units stay at each setting of one knob, from which planning picks the one that meets the budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fxprune.axes.elements import Mask
from fxprune.groups import Group

__all__ = ["Ladder", "Problem", "QueueLadder", "QueueSelection", "Selection"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """What a selection has to keep to.

    Attributes:
        groups: those that may be narrowed: not excluded, nor kept whole for their residual stream.
        saved: how much of the budget is saved when exactly the marked units stay (absent groups keep all).
        fewest: how many units of a group have to stay.
    """

    groups: tuple[Group, ...]
    saved: Callable[[Mapping[Group, Mask]], float]
    fewest: Callable[[Group], int]


class Ladder(Protocol):
    """Settings of a knob, from the one that removes least to the one that removes most."""

    def __len__(self) -> int:
        """How many settings there are."""
        ...

    def keep(self, rung: int) -> Mapping[Group, Mask]:
        """Which units stay at a setting; groups that are absent keep all."""
        ...


class Selection(Protocol):
    """The answer of a selector."""

    @property
    def preference(self) -> Mapping[Group, FloatArray]:
        """Per unit of every group, higher = keep: for units that limits or an overshoot give back, and for going on."""
        ...

    def ladders(self, problem: Problem) -> Iterable[Ladder]:
        """Ladders to be tried one after the other; the first that reaches the budget is searched."""
        ...


class QueueLadder:
    """Units that go one after the other; the knob is how many are gone.

    Args:
        queue: groups and units, the first to go first.
    """

    def __init__(self, queue: Sequence[tuple[Group, int]]) -> None:
        self._queue = queue

    def __len__(self) -> int:
        return len(self._queue) + 1

    def keep(self, rung: int) -> Mapping[Group, Mask]:
        """All but the first ``rung`` of the queue."""
        masks: dict[Group, Mask] = {}
        for group, unit in self._queue[:rung]:
            masks.setdefault(group, np.ones(group.size, dtype=np.bool_))[unit] = False
        return masks


@dataclass(frozen=True)
class QueueSelection:
    """A selection of one queue, made for the groups that may be narrowed."""

    preference: Mapping[Group, FloatArray]
    queue: Callable[[Problem], Sequence[tuple[Group, int]]]

    def ladders(self, problem: Problem) -> Iterable[Ladder]:
        """The queue's ladder."""
        return [QueueLadder(self.queue(problem))]
