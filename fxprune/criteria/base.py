"""The protocols of criteria: scorers, selectors, and selections with a knob that planning sets to meet the budget."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import FloatArray, Mask
from fxprune.axes.expressions import IndexArray
from fxprune.calibration import Collector, TapFinder
from fxprune.errors import CriterionError
from fxprune.util.registry import Registry

if TYPE_CHECKING:
    from fxprune.criteria.judging import Study


@dataclass(frozen=True)
class Problem:
    """The constraints of a selection."""

    groups: tuple[Group, ...]  # the groups that may be narrowed: not excluded, nor kept whole for their residual stream
    # The part of the budget that is saved if exactly the marked channels stay (absent groups keep all).
    saved: Callable[[Mapping[Group, Mask]], float]
    fewest: Callable[[Group], int]  # the number of channels of a group that must stay


class Ladder(Protocol):
    """Settings of a knob, from least to most removed; ``monotone``: whether the saving never falls on the way."""

    monotone: bool

    def __len__(self) -> int:
        """The number of settings."""
        ...

    def keep(self, rung: int) -> Mapping[Group, Mask]:
        """The channels that stay at a setting; absent groups keep all."""
        ...


class Selection(Protocol):
    """The result of a selector."""

    @property
    def preference(self) -> Mapping[Group, FloatArray]:
        """One number per channel of every group, higher = keep: the order for corrections to limits and the budget."""
        ...

    def ladders(self, problem: Problem) -> Iterable[Ladder]:
        """Ladders to try one after the other; the first that reaches the budget is searched."""
        ...


class QueueLadder:
    """Channels that are removed one after the other; the knob is how many are removed.

    Args:
        queue: groups and channels, in order of removal.
    """

    monotone = True

    def __init__(self, queue: Sequence[tuple[Group, int]]) -> None:
        self._queue = queue

    def __len__(self) -> int:
        return len(self._queue) + 1

    def keep(self, rung: int) -> Mapping[Group, Mask]:
        """All but the first ``rung`` of the queue."""
        gone: dict[Group, list[int]] = defaultdict(list)
        for group, channel in self._queue[:rung]:
            gone[group].append(channel)
        return {group: group.without(channels) for group, channels in gone.items()}


@dataclass(frozen=True)
class QueueSelection:
    """A selection by one queue, over the groups that may be narrowed."""

    preference: Mapping[Group, FloatArray]
    queue: Callable[[Problem], Sequence[tuple[Group, int]]]

    def ladders(self, problem: Problem) -> Iterable[Ladder]:
        """The queue's ladder."""
        return [QueueLadder(self.queue(problem))]


class _Named(Protocol):
    @property
    def name(self) -> str:
        """The name by which users choose it, and which the plan records."""
        ...


@runtime_checkable
class Scorer(_Named, Protocol):
    """Gives every channel of a group one number; the allocator removes the channels with the lowest."""

    def score(self, group: Group, tensors: Mapping[str, Tensor], graph: ChannelGraph) -> FloatArray | None:
        """Scores of shape ``(group.size,)``, finite, higher = keep; None if it cannot judge the group.

        Args:
            group: the group; its members name the tensor dims that its channels cut.
            tensors: every parameter and buffer by its first state-dict name.
            graph: the channel graph that the group belongs to.
        """
        ...


@runtime_checkable
class ObservingScorer(_Named, Protocol):
    """A scorer that uses activations or gradients on calibration data."""

    def observe(self, group: Group, finder: TapFinder, tensors: Mapping[str, Tensor]) -> Any:
        """The observations to make in one pass: any nesting of :class:`~fxprune.calibration.Observation` objects."""
        ...

    def score_observed(
        self, group: Group, observed: Any, tensors: Mapping[str, Tensor], graph: ChannelGraph
    ) -> FloatArray | None:
        """As :meth:`Scorer.score`; ``observed`` is the result of :meth:`observe`, with statistics for observations."""
        ...


@runtime_checkable
class WeighingScorer(ObservingScorer, Protocol):
    """An observing scorer that makes the scores of all groups comparable in a second pass over the data."""

    def refined(self, observed: Mapping[Group, Any], collector: Collector) -> Mapping[Group, Any]:
        """The observations of all groups, with what a second pass adds to them before scores are taken."""
        ...

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
    """Chooses the channels that stay, with one knob that planning turns until the budget is met."""

    def select(self, study: Study) -> Selection:
        """The selection, from whose settings planning chooses."""
        ...


Criterion = Scorer | ObservingScorer | Selector


def removal_order(scores: FloatArray) -> IndexArray:
    """Channels in order of removal: lowest score first, among equals the highest index first."""
    reverse = np.argsort(scores[::-1], kind="stable")
    return (len(scores) - 1 - reverse).astype(np.int64)


Normaliser = Callable[[FloatArray], FloatArray]


def _divided(scores: FloatArray, divisor: float) -> FloatArray:
    # A divisor of zero means that all scores are zero (or cancel), so they have no scale.
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
    # Divided by the population variance, not its root, as published code does for feature entropies.
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
