"""Combinations of criteria: sums, products, mean ranks, minima, and two in parallel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import FloatArray, Mask
from fxprune.calibration import TapFinder
from fxprune.criteria.base import (
    Ladder,
    ObservingScorer,
    Problem,
    Scorer,
    Selection,
    criterion,
    normaliser_by_name,
    removal_order,
)
from fxprune.criteria.features import FeatureEntropy
from fxprune.criteria.judging import Study, observations_of, score_one
from fxprune.criteria.weights import Slimming
from fxprune.errors import CriterionError
from fxprune.util.registry import Named

Part = Scorer | ObservingScorer


@dataclass(frozen=True)
class Combination:
    """Several criteria as one: each is normalised in the group, then combined; all observe in one pass.

    If a criterion cannot judge a group, only the others count there.

    Args:
        parts: the criteria, by object.
        normalise: scales each part's scores in a group, see :class:`~fxprune.criteria.weights.Magnitude`.

    Raises:
        CriterionError: there are no parts, one is not a scorer, or the normaliser is unknown.
    """

    parts: tuple[Part, ...]
    normalise: str = "minmax"

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        wrong = [p for p in self.parts if isinstance(p, type) or not isinstance(p, (Scorer, ObservingScorer))]
        if not self.parts or wrong:
            raise CriterionError(
                f"{type(self).__name__} combines scorers, objects with a `name` and scores, not {wrong}"
            )
        normaliser_by_name(self.normalise)

    @property
    def name(self) -> str:
        """The name that plans record."""
        return f"{type(self).__name__}({', '.join(part.name for part in self.parts)})"

    def observe(self, group: Group, finder: TapFinder, tensors: Mapping[str, Tensor]) -> Any:
        """The observations of all parts."""
        return [observations_of(part, group, finder, tensors) for part in self.parts]

    def score_observed(
        self, group: Group, observed: Any, tensors: Mapping[str, Tensor], graph: ChannelGraph
    ) -> FloatArray | None:
        """Scores of shape ``(group.size,)``; None if no part can judge the group."""
        found = [score_one(part, group, seen, tensors, graph) for part, seen in zip(self.parts, observed, strict=True)]
        known = [(number, self.prepared(scores)) for number, scores in enumerate(found) if scores is not None]
        return self.combined([n for n, _ in known], np.stack([s for _, s in known])) if known else None

    def prepared(self, scores: FloatArray) -> FloatArray:
        """The scores of one part, made comparable with those of the others."""
        return normaliser_by_name(self.normalise)(scores)

    def combined(self, parts: Sequence[int], scores: FloatArray) -> FloatArray:
        """Combine prepared scores (parts, channels) of the parts that could judge into one score per channel."""
        raise NotImplementedError


@dataclass(frozen=True)
class WeightedSum(Combination):
    """The weighted sum of the parts' scores.

    Args:
        weights: one for each part; equal by default.
    """

    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weights", tuple(self.weights) or (1.0 / len(self.parts),) * len(self.parts))
        if len(self.weights) != len(self.parts):
            raise CriterionError(f"{len(self.parts)} criteria need as many weights, not {len(self.weights)}")

    def combined(self, parts: Sequence[int], scores: FloatArray) -> FloatArray:
        weights = np.array([self.weights[part] for part in parts])
        total: FloatArray = weights @ scores
        return total


@dataclass(frozen=True)
class Product(Combination):
    """The product of the parts' scores."""

    def combined(self, parts: Sequence[int], scores: FloatArray) -> FloatArray:
        total: FloatArray = scores.prod(axis=0)
        return total


@dataclass(frozen=True)
class RankAverage(Combination):
    """The mean of the parts' ranks in the group, from 0 (removed first) to 1; scales do not matter."""

    def prepared(self, scores: FloatArray) -> FloatArray:
        """Ranks between 0 and 1."""
        ranks = np.empty(len(scores))
        ranks[removal_order(scores)] = np.arange(len(scores))
        return ranks / max(len(scores) - 1, 1)

    def combined(self, parts: Sequence[int], scores: FloatArray) -> FloatArray:
        mean: FloatArray = scores.mean(axis=0)
        return mean


@dataclass(frozen=True)
class Minimum(Combination):
    """The lowest of the parts' scores: a channel stays only if every part would keep it."""

    def combined(self, parts: Sequence[int], scores: FloatArray) -> FloatArray:
        lowest: FloatArray = scores.min(axis=0)
        return lowest


@criterion("parallel")
@dataclass(frozen=True)
class Parallel(Named):
    """Both criteria with one global threshold each at the same share, then per layer the mask that keeps fewer.

    Shao et al., Sensors 21(19):6601 ("parallel"), there with feature entropy and slimming; here with any two scorers.
    If one mask keeps nothing of a layer, the other is used; if both keep equally many, the second. The knob is the
    position of the threshold in the sorted scores.

    Args:
        first, second: the two scorers.

    Raises:
        CriterionError: one of them is not a scorer.
    """

    first: Scorer | ObservingScorer = field(default_factory=FeatureEntropy)
    second: Scorer | ObservingScorer = field(default_factory=Slimming)

    def __post_init__(self) -> None:
        for part in (self.first, self.second):
            if isinstance(part, type) or not isinstance(part, (Scorer, ObservingScorer)):
                raise CriterionError(f"parallel combines two scorers, objects with a `name` and scores, not {part!r}")

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
    """Masks by the position of the threshold; at the first setting all channels stay."""

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
    """Masks of the channels whose scores are above the one at ``place`` in ascending order; equal ones are removed.

    With ``place = int(total * percent)`` this is the published rule: keep scales above, entropies below the threshold.
    """
    threshold = np.sort(np.concatenate(list(scores.values())))[place]
    return {group: values > threshold for group, values in scores.items()}


def fewer_kept(first: Mask, second: Mask) -> Mask:
    """The mask of a layer that keeps fewer channels, but at least one; the second if both keep equally many."""
    a, b = int(first.sum()), int(second.sum())
    if a == 0 or b == 0:
        return second if a == 0 else first
    return second if b <= a else first
