"""Two criteria side by side: in each layer the mask that keeps fewer channels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from fxprune.analysis.groups import Group
from fxprune.axes.elements import Mask
from fxprune.criteria.base import (
    FloatArray,
    Ladder,
    ObservingScorer,
    Problem,
    Scorer,
    Selection,
    Study,
    criterion,
    normaliser_by_name,
)
from fxprune.criteria.entropy import FeatureEntropy
from fxprune.criteria.weights import Slimming
from fxprune.errors import CriterionError


@criterion("parallel")
@dataclass(frozen=True)
class Parallel:
    """Both criteria with one global threshold each at the same share, then per layer the mask that keeps fewer.

    Shao et al., Sensors 21(19):6601 ("parallel"), with feature entropy and slimming; any two scorers may stand for
    them. A mask that keeps nothing of a layer gives way to the other; between equal ones the second's is taken. The
    knob is the place of the threshold in the sorted scores.

    Args:
        first, second: the two scorers.

    Raises:
        CriterionError: one of them is no scorer.
    """

    first: Scorer | ObservingScorer = field(default_factory=FeatureEntropy)
    second: Scorer | ObservingScorer = field(default_factory=Slimming)

    def __post_init__(self) -> None:
        for part in (self.first, self.second):
            if isinstance(part, type) or not isinstance(part, (Scorer, ObservingScorer)):
                raise CriterionError(f"parallel combines two scorers, objects with a `name` and scores, not {part!r}")

    @property
    def name(self) -> str:
        """The registered name."""
        return "parallel"

    def select(self, study: Study) -> Selection:
        """The masks at every threshold."""
        first, second = study.scores(self.first), study.scores(self.second)
        scale = normaliser_by_name("minmax")
        preference = {group: scale(first[group]) + scale(second[group]) for group in first}
        return _ParallelSelection(preference, first, second)


@dataclass(frozen=True)
class _ParallelSelection:
    preference: Mapping[Group, FloatArray]
    first: Mapping[Group, FloatArray]
    second: Mapping[Group, FloatArray]

    def ladders(self, problem: Problem) -> Iterable[Ladder]:
        return [_Thresholds(*({g: scores[g] for g in problem.groups} for scores in (self.first, self.second)))]


class _Thresholds:
    """Masks by the place of the threshold; at the first setting all channels stay."""

    monotone = True

    def __init__(self, first: Mapping[Group, FloatArray], second: Mapping[Group, FloatArray]) -> None:
        self._first = first
        self._second = second
        self._total = sum(len(scores) for scores in first.values())

    def __len__(self) -> int:
        return self._total + 1

    def keep(self, rung: int) -> Mapping[Group, Mask]:
        if rung == 0:
            return {}
        first, second = (threshold_masks(scores, rung - 1) for scores in (self._first, self._second))
        return {group: fewer_kept(first[group], second[group]) for group in first}


def threshold_masks(scores: Mapping[Group, FloatArray], place: int) -> dict[Group, Mask]:
    """Channels that score above the one at ``place`` of all scores in ascending order; equal ones go too.

    With ``place = int(total * percent)`` this is the published rule: keep scales above, entropies below the threshold.
    """
    threshold = np.sort(np.concatenate(list(scores.values())))[place]
    return {group: values > threshold for group, values in scores.items()}


def fewer_kept(first: Mask, second: Mask) -> Mask:
    """Of two masks of one layer the one that keeps fewer but some; the second where both keep as many."""
    a, b = int(first.sum()), int(second.sum())
    if a == 0 or b == 0:
        return second if a == 0 else first
    return second if b <= a else first
