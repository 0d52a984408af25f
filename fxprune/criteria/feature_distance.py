"""FOAD: a covering of channels by channels with near feature maps (Shi et al., "Feature-Oriented and Decoupled")."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import FloatArray, Mask
from fxprune.axes.expressions import IndexArray
from fxprune.calibration.taps import check_tap_rule
from fxprune.criteria.base import Ladder, Problem, Selection, criterion
from fxprune.criteria.features import MapCriterion, PairMean
from fxprune.criteria.judging import Study
from fxprune.criteria.rows import distances
from fxprune.errors import CriterionError
from fxprune.util.registry import Named

_THRESHOLDS = 256
_SAMPLED = 1 << 16  # the most similarities of one layer that enter the quantiles
_NEAR = 64


@criterion("feature_distance")
@dataclass(frozen=True)
class FeatureDistance(Named, MapCriterion):
    """Removes channels whose maps are close to those of a kept channel; the widths follow from the data.

    Shi et al., J. Computer Research and Development, doi 10.7544/issn1000-1239.202330085, as in the released code: the
    similarity of two channels is the mean over samples of ``1 / (1 + |F_i - F_j|)``. In order of index, each channel
    not yet removed stays and removes its ``t`` most similar ones whose similarity is at least ``s``. The paper does not
    say which (t, s) gave its results. Here, ``t`` is the first that reaches the budget with s = 0, and ``s`` the
    largest of 256 quantiles of all similarities that still does. For coupled channels, similarities are averaged over
    the places where they are tapped.

    Args:
        kept_block_slots: whether a kept neighbour takes up one of the ``t`` slots, as in the released code (which
            therefore keeps most of a set of equal channels); False considers only undecided channels.
        tap: where maps are read; "pooled" (after the activation and a max-pool that alone reads it) is as in the
            released code. "activated" reads before the pool.

    Raises:
        CriterionError: an unknown tap rule.
    """

    kept_block_slots: bool = True
    tap: str = "pooled"

    def __post_init__(self) -> None:
        check_tap_rule(self.tap)

    def statistic(self, channels: int) -> PairMean:
        """Mean similarities."""
        return PairMean(channels, similarity)

    def score_observed(
        self, group: Group, observed: Any, tensors: Mapping[str, Tensor], graph: ChannelGraph
    ) -> FloatArray | None:
        """Minus the similarity to the nearest other channel, shape ``(group.size,)``; None if nothing was observed."""
        return _distinctness(np.mean([s.result() for s in observed], axis=0)) if observed else None

    def select(self, study: Study) -> Selection:
        """The coverings by (t, s)."""
        observed = study.observed(self)
        similar = {g: np.mean([s.result() for s in seen], axis=0) for g, seen in observed.items() if seen}
        if not similar:
            raise CriterionError("feature_distance finds no activation that holds the channels of a group")
        preference = {g: _distinctness(similar[g]) if g in similar else np.zeros(g.size) for g in observed}
        return _CoveringSelection(preference, similar, self.kept_block_slots)


def similarity(maps: Tensor) -> Tensor:
    """``1 / (1 + distance)`` between the maps (channels, positions) of two channels, from Gram matrices."""
    return 1 / (1 + distances(maps))


def covering(similar: FloatArray, t: int, s: float, kept_block_slots: bool = True) -> list[int]:
    """The channels that stay if each may remove ``t`` others of similarity ``s``; see :class:`FeatureDistance`."""
    return Neighbours(similar).covering(t, s, kept_block_slots)


class Neighbours:
    """The channels of a layer, with the neighbours of each sorted once for many coverings."""

    def __init__(self, similar: FloatArray) -> None:
        self._similar = similar
        self._near = np.empty((len(similar), min(len(similar), _NEAR)), dtype=np.int64)
        for i in range(len(similar)):
            self._near[i] = self._sorted(i)[: self._near.shape[1]]

    def _sorted(self, i: int) -> IndexArray:
        """All channels by falling similarity to ``i``, the lower index first among equals."""
        return np.argsort(-self._similar[i], kind="stable").astype(np.int64)

    def covering(self, t: int, s: float, kept_block_slots: bool) -> list[int]:
        """See :func:`covering`."""
        count = len(self._similar)
        removed = np.zeros(count, dtype=np.bool_)
        kept = np.zeros(count, dtype=np.bool_)
        # A channel without a neighbour of similarity s is neither removed nor removes any: skip it.
        near = np.count_nonzero(self._similar >= s, axis=1) > (np.diagonal(self._similar) >= s)
        kept[~near] = True
        for i in np.flatnonzero(near).tolist():
            if removed[i]:
                continue
            kept[i] = True
            # The channel itself is not a candidate.
            taken = removed.copy() if kept_block_slots else removed | kept
            taken[i] = True
            nearest = self._near[i][~taken[self._near[i]]]
            if len(nearest) < t and self._near.shape[1] < count:
                nearest = self._sorted(i)
                nearest = nearest[~taken[nearest]]
            nearest = nearest[:t]
            removed[nearest[(self._similar[i, nearest] >= s) & ~kept[nearest]]] = True
        stays: list[int] = np.flatnonzero(kept).tolist()
        return stays


def _distinctness(similar: FloatArray) -> FloatArray:
    others = similar - 2 * np.eye(len(similar))
    return -others.max(axis=1) if len(similar) > 1 else np.zeros(len(similar))


@dataclass(frozen=True)
class _CoveringSelection:
    preference: Mapping[Group, FloatArray]
    similar: Mapping[Group, FloatArray]
    kept_block_slots: bool

    def ladders(self, problem: Problem) -> Iterable[Ladder]:
        similar = {g: self.similar[g] for g in problem.groups if g in self.similar}
        widest = max((g.size for g in similar), default=1)
        neighbours = {g: Neighbours(values) for g, values in similar.items()}
        thresholds = _thresholds(similar.values())
        t = 1
        while t < widest:
            yield _Coverings(neighbours, thresholds, t, self.kept_block_slots)
            t = t + 1 if t < 16 else 2 * t


class _Coverings:
    """Coverings at one ``t`` by falling ``s``."""

    monotone = False

    def __init__(
        self, neighbours: Mapping[Group, Neighbours], thresholds: Sequence[float], t: int, kept_block_slots: bool
    ) -> None:
        self._neighbours = neighbours
        self._thresholds = thresholds
        self._t = t
        self._kept_block_slots = kept_block_slots

    def __len__(self) -> int:
        return len(self._thresholds)

    def keep(self, rung: int) -> Mapping[Group, Mask]:
        at = (self._t, self._thresholds[rung], self._kept_block_slots)
        return {group: group.keeping(neighbours.covering(*at)) for group, neighbours in self._neighbours.items()}


def _thresholds(similar: Iterable[FloatArray]) -> list[float]:
    """Values of ``s``, by quantiles of all similarities, from one above all of them down to 0."""
    values = [np.zeros(0)]
    for matrix in similar:
        pairs = matrix.reshape(-1)[1:]
        values.append(pairs[:: max(1, len(pairs) // _SAMPLED)])
    flat = np.concatenate(values)
    return [2.0, *(np.quantile(flat, np.linspace(1, 0, _THRESHOLDS)).tolist() if len(flat) else []), 0.0]
