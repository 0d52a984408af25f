"""Selections: which channels stay at each setting of one knob; planning picks the setting that meets the budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import Mask
from fxprune.calibration import Collector, TapFinder
from fxprune.errors import CriterionError
from fxprune.util.registry import Registry

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """What a selection has to keep to."""

    groups: tuple[Group, ...]  # those that may be narrowed: not excluded, nor kept whole for their residual stream
    # How much of the budget is saved when exactly the marked channels stay (absent groups keep all).
    saved: Callable[[Mapping[Group, Mask]], float]
    fewest: Callable[[Group], int]  # how many channels of a group have to stay


class Ladder(Protocol):
    """Settings of a knob, from least to most removed; ``monotone``: whether none saves less than the one before."""

    monotone: bool

    def __len__(self) -> int:
        """How many settings there are."""
        ...

    def keep(self, rung: int) -> Mapping[Group, Mask]:
        """Which channels stay at a setting; groups that are absent keep all."""
        ...


class Selection(Protocol):
    """The answer of a selector."""

    @property
    def preference(self) -> Mapping[Group, FloatArray]:
        """Per channel of every group, higher = keep: for those that limits or an overshoot give back, and to go on."""
        ...

    def ladders(self, problem: Problem) -> Iterable[Ladder]:
        """Ladders to be tried one after the other; the first that reaches the budget is searched."""
        ...


class QueueLadder:
    """Channels that go one after the other; the knob is how many are gone.

    Args:
        queue: groups and channels, the first to go first.
    """

    monotone = True

    def __init__(self, queue: Sequence[tuple[Group, int]]) -> None:
        self._queue = queue

    def __len__(self) -> int:
        return len(self._queue) + 1

    def keep(self, rung: int) -> Mapping[Group, Mask]:
        """All but the first ``rung`` of the queue."""
        masks: dict[Group, Mask] = {}
        for group, channel in self._queue[:rung]:
            masks.setdefault(group, np.ones(group.size, dtype=np.bool_))[channel] = False
        return masks


@dataclass(frozen=True)
class QueueSelection:
    """A selection of one queue, made for the groups that may be narrowed."""

    preference: Mapping[Group, FloatArray]
    queue: Callable[[Problem], Sequence[tuple[Group, int]]]

    def ladders(self, problem: Problem) -> Iterable[Ladder]:
        """The queue's ladder."""
        return [QueueLadder(self.queue(problem))]


class _Named(Protocol):
    @property
    def name(self) -> str:
        """The name it is chosen by, and that the plan records."""
        ...


@runtime_checkable
class Scorer(_Named, Protocol):
    """Gives every channel of a group one number; the allocator removes the channels with the lowest."""

    def score(self, group: Group, tensors: Mapping[str, Tensor], graph: ChannelGraph) -> FloatArray | None:
        """Scores of shape ``(group.size,)``, finite, higher = keep; None where it cannot judge the group.

        Args:
            group: the group; its members name the tensor dims that its channels cut.
            tensors: every parameter and buffer by its first state-dict name.
            graph: the channel graph the group belongs to.
        """
        ...


@runtime_checkable
class ObservingScorer(_Named, Protocol):
    """A scorer that looks at activations or gradients of calibration data."""

    def observe(self, group: Group, finder: TapFinder, tensors: Mapping[str, Tensor]) -> Any:
        """What to look at in one pass: any nesting of :class:`~fxprune.calibration.Observation` objects."""
        ...

    def score_observed(
        self, group: Group, observed: Any, tensors: Mapping[str, Tensor], graph: ChannelGraph
    ) -> FloatArray | None:
        """As :meth:`Scorer.score`; ``observed`` is what :meth:`observe` gave, with statistics for observations."""
        ...


@runtime_checkable
class WeighingScorer(ObservingScorer, Protocol):
    """An observing scorer that makes the scores of all groups comparable in a second look at the data."""

    def weighed(
        self,
        scores: Mapping[Group, FloatArray | None],
        observed: Mapping[Group, Any],
        tensors: Mapping[str, Tensor],
        collector: Collector,
    ) -> Mapping[Group, FloatArray | None]:
        """The scores of all groups; None stays for those that it cannot judge."""
        ...


@runtime_checkable
class Selector(_Named, Protocol):
    """Chooses which channels stay, with one knob that planning turns until the budget is met."""

    def select(self, study: Study) -> Selection:
        """The settings of the knob, from which planning chooses."""
        ...


Criterion = Scorer | ObservingScorer | Selector


class Study(Protocol):
    """What a selector has to go by."""

    @property
    def graph(self) -> ChannelGraph:
        """The channel graph."""
        ...

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Every parameter and buffer by its first state-dict name."""
        ...

    def scores(self, criterion: Scorer | ObservingScorer) -> dict[Group, FloatArray]:
        """The scores that another criterion gives every group, after its pass over the calibration data.

        Raises:
            CriterionError, CalibrationError: see :func:`~fxprune.criteria.judging.judge`.
        """
        ...

    def observed(self, criterion: ObservingScorer) -> dict[Group, Any]:
        """What another criterion observes of every group."""
        ...

    def collector(self, name: str) -> Collector:
        """What runs over the data again, for the criterion of that name. Raises CalibrationError: there are none."""
        ...


def removal_order(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Channels in the order in which they go: lowest score first, of equals the highest index (the lowest survives)."""
    reverse = np.argsort(scores[::-1], kind="stable")
    return (len(scores) - 1 - reverse).astype(np.int64)


Normaliser = Callable[[FloatArray], FloatArray]


def _divided(scores: FloatArray, divisor: float) -> FloatArray:
    # A divisor of zero means scores that are all zero (or cancel): no scale can be read off them.
    return scores / divisor if divisor != 0 else scores.copy()


def _lamp(scores: FloatArray) -> FloatArray:
    """``s_u^2 / sum of s_v^2 over v >= u`` in ascending order (Lee et al., 2021, arXiv 2010.07611, equation 2)."""
    order = removal_order(scores)
    energy = np.square(scores[order])
    remaining = np.cumsum(energy[::-1])[::-1]
    lamp = np.divide(energy, remaining, out=np.zeros_like(energy), where=remaining > 0)
    scaled = np.empty_like(scores)
    scaled[order] = lamp
    return scaled


NORMALISERS: dict[str, Normaliser] = {
    "none": np.copy,
    "mean": lambda scores: _divided(scores, float(scores.mean())),
    "max": lambda scores: _divided(scores, float(scores.max())),
    "sum": lambda scores: _divided(scores, float(scores.sum())),
    "minmax": lambda scores: _divided(scores - scores.min(), float(scores.max() - scores.min())),
    "zscore": lambda scores: _divided(scores - scores.mean(), float(scores.std())),
    "l2": lambda scores: _divided(scores, float(np.sqrt(np.square(scores).sum()))),
    # By the population variance, not its root, as feature entropies are in published code.
    "variance": lambda scores: _divided(scores - scores.mean(), float(scores.var())),
    "lamp": _lamp,
}


def normaliser_by_name(name: str) -> Normaliser:
    """The normaliser of that name. Raises CriterionError: the name is unknown."""
    if name not in NORMALISERS:
        raise CriterionError(f"unknown normaliser {name!r}; choose one of {', '.join(NORMALISERS)}")
    return NORMALISERS[name]


_WORDS = {
    **dict.fromkeys(("l1", "l2", "norm", "weight"), "magnitude"),
    **dict.fromkeys(("bn", "bn_scale"), "slimming"),
    "foad": "feature_distance",
    "gradient": "taylor",
    "obd": "hessian",
    "osscar": "reconstruction",
}
criterion: Registry[Criterion] = Registry("criterion", "fxprune.criteria", CriterionError, _WORDS)
"""Registers a class of criteria under the name by which users ask for it."""
