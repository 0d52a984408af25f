"""A base for criteria that measure feature maps one by one, and the two simplest of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxprune.criteria.base import FloatArray, ScoredGraph
from fxprune.criteria.normalising import normaliser_by_name
from fxprune.groups import Group
from fxprune.statistics import Mean, Observation, TapFinder
from fxprune.statistics.taps import check_tap_rule

__all__ = ["APoZ", "FeatureCriterion", "MeanActivation", "flat"]


def flat(maps: Tensor) -> Tensor:
    """Maps (samples, channels, ...) as (samples, channels, positions), in float32 or wider."""
    wide = maps if maps.dtype in (torch.float32, torch.float64) else maps.to(torch.float32)
    return wide.reshape(*wide.shape[:2], -1)


@dataclass(frozen=True)
class FeatureCriterion:
    """The mean of a measure of the feature maps over all samples; a subclass says what is measured.

    Where a group is tapped at several places, each is normalised and the mean is taken.

    Args:
        tap: where maps are read, "normalised", "activated" or "producer"; see :mod:`fxprune.statistics.taps`.
        normalise: see :class:`~fxprune.criteria.magnitude.Magnitude`.

    Raises:
        CriterionError: an unknown tap rule or normaliser.
    """

    tap: str = "normalised"
    normalise: str = "mean"

    def __post_init__(self) -> None:
        check_tap_rule(self.tap)
        normaliser_by_name(self.normalise)

    @property
    def name(self) -> str:
        """The name that plans record."""
        return type(self).__name__

    def measure(self, maps: Tensor) -> Tensor:
        """One number for each map, higher = keep: from (samples, channels, ...) to (samples, channels)."""
        raise NotImplementedError

    def observe(self, group: Group, finder: TapFinder, tensors: Mapping[str, Tensor]) -> Any:
        """The mean measure at every tap."""
        return [Observation(tap, Mean(tap.units, self.measure)) for tap in finder.taps(group, self.tap)]

    def score_observed(
        self, group: Group, observed: Any, tensors: Mapping[str, Tensor], graph: ScoredGraph
    ) -> FloatArray | None:
        """Scores of shape ``(group.size,)``; None where no activation holds the group's channels."""
        if not observed:
            return None
        normalise = normaliser_by_name(self.normalise)
        scores: FloatArray = np.mean([normalise(statistic.result()) for statistic in observed], axis=0)
        return scores


@dataclass(frozen=True)
class MeanActivation(FeatureCriterion):
    """The mean of ``|F|`` over samples and positions (Molchanov et al., 2017, arXiv 1611.06440, section 2.2)."""

    @property
    def name(self) -> str:
        """The registered name."""
        return "mean_activation"

    def measure(self, maps: Tensor) -> Tensor:
        """The mean magnitude of each map."""
        values = flat(maps)
        magnitude: Tensor = torch.linalg.vector_norm(values, 1, dim=2)
        return magnitude / values.shape[2]


@dataclass(frozen=True)
class APoZ(FeatureCriterion):
    """One minus the average percentage of zeros after the activation (Hu et al., 2016, arXiv 1607.03250, equation 1).

    Values at or below zero count as zeros, so that activations which leave small negative values can be judged too.
    """

    tap: str = "activated"
    normalise: str = "none"

    @property
    def name(self) -> str:
        """The registered name."""
        return "apoz"

    def measure(self, maps: Tensor) -> Tensor:
        """The share of positions of each map that are above zero."""
        values = flat(maps)
        # Ones and zeros in the maps' own type add up faster than truth values do.
        return torch.gt(values, 0, out=torch.empty_like(values)).sum(2) / values.shape[2]
