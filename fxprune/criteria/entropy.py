"""Feature-map entropy (Shao et al. 2021, "Filter Pruning via Measuring Feature Map Information")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph
from fxprune.calibration import Mean, Observation, TapFinder
from fxprune.calibration.taps import check_tap_rule
from fxprune.criteria.base import FloatArray, criterion, normaliser_by_name
from fxprune.criteria.features import flat
from fxprune.criteria.rows import settled
from fxprune.errors import CriterionError
from fxprune.util.registry import Named

_ELEMENTS = 1 << 16  # of the maps handled at a time: temporaries stay in the cache


@criterion("feature_entropy")
@dataclass(frozen=True)
class FeatureEntropy(Named):
    """The entropy of feature maps, normalised in each layer; one global threshold.

    Shao et al., Sensors 21(19):6601, as the authors' released code computes it. With
    ``estimator="spatial_softmax"`` a map is turned into a distribution over its positions by a softmax; a flat map has
    the *highest* entropy and goes first. With ``estimator="histogram"`` the values of a map are binned; a flat map has
    entropy 0, and the *lowest* goes first. The paper's text settles neither which is meant nor the histogram's bins
    and their range; the default follows the code. Bins over each map's own range are blind to scale, and a map with one
    high peak falls into few of them, so the bins lie over the range of all of the layer's maps of a sample.

    Args:
        estimator: "spatial_softmax" or "histogram".
        transform: before the softmax, "sqdev" (squared deviations from the map's mean) or "plain".
        normalize: in each layer, "minmax" or "variance" (centred, divided by the variance, not its root). A layer whose
            entropies are all equal gets 0.5.
        bins: of the histogram.
        value_range: of the histogram's bins, "layer" (from the lowest to the highest value of all channels of the
            sample) or "map" (of the map alone).
        tap: where maps are read, see :mod:`fxprune.calibration.taps`.

    Raises:
        CriterionError: an argument is none of these.
    """

    estimator: str = "spatial_softmax"
    transform: str = "sqdev"
    normalize: str = "minmax"
    bins: int = 32
    value_range: str = "layer"
    tap: str = "normalised"

    def __post_init__(self) -> None:
        check_tap_rule(self.tap)
        _check("estimator", self.estimator, ("spatial_softmax", "histogram"))
        _check("transform", self.transform, ("sqdev", "plain"))
        _check("normalize", self.normalize, ("minmax", "variance"))
        _check("value_range", self.value_range, ("layer", "map"))
        if not isinstance(self.bins, int) or self.bins < 2:
            raise CriterionError(f"bins must be a whole number of at least 2, not {self.bins!r}")

    def measure(self, maps: Tensor) -> Tensor:
        """The entropy of each map, in nats: from (samples, channels, ...) to (samples, channels)."""
        values = flat(maps)
        if self.estimator == "histogram" and self.value_range == "layer":
            return torch.stack([histogram_entropy(sample, self.bins, together=True) for sample in values])
        one = partial(spatial_entropy, squared=self.transform == "sqdev")
        if self.estimator == "histogram":
            one = partial(histogram_entropy, bins=self.bins)
        rows = torch.split(values.flatten(0, 1), max(1, _ELEMENTS // max(1, values.shape[2])))
        return torch.cat([one(part) for part in rows]).reshape(values.shape[:2])

    def observe(self, group: Group, finder: TapFinder, tensors: Mapping[str, Tensor]) -> Any:
        """The mean entropy at every tap."""
        return [Observation(tap, Mean(tap.channels, self.measure)) for tap in finder.taps(group, self.tap)]

    def score_observed(
        self, group: Group, observed: Any, tensors: Mapping[str, Tensor], graph: ChannelGraph
    ) -> FloatArray | None:
        """Scores of shape ``(group.size,)``; None where no activation holds the group's channels."""
        if not observed:
            return None
        found = np.mean([normalised_entropies(s.result(), self.normalize) for s in observed], axis=0)
        scores: FloatArray = found if self.estimator == "histogram" else -found
        return scores


def spatial_entropy(maps: Tensor, squared: bool = True) -> Tensor:
    """Entropy of the softmax over positions, of the squared deviations from the mean or of the map itself.

    From (..., positions) to (...), in nats, float64, between 0 and the logarithm of the number of positions. Maps of
    small values lie so near that limit that float32 would leave nothing but its rounding.
    """
    maps = maps.double()
    energy = (maps - maps.mean(-1, keepdim=True)).square_() if squared else maps
    # Below -80 a weight adds nothing, and further down are the numbers that processors are slow with.
    shifted = (energy - energy.amax(-1, keepdim=True)).clamp_(min=-80)
    weights = shifted.exp()
    total = weights.sum(-1)
    # With Z = sum(exp u), H = log Z - sum(u exp u) / Z.
    return total.log() - weights.mul_(shifted).sum(-1) / total


def histogram_entropy(maps: Tensor, bins: int = 32, together: bool = False) -> Tensor:
    """Entropy of values in equal bins, over each map's range or ``together``: (..., positions) to (...), in nats."""
    dims = tuple(range(maps.ndim)) if together else -1
    low, high = maps.amin(dims, keepdim=True), maps.amax(dims, keepdim=True)
    spread = torch.where(high > low, high - low, 1.0)
    place = ((maps - low) / spread * bins).long().clamp_(max=bins - 1)
    counts = torch.zeros(*maps.shape[:-1], bins, dtype=torch.float64, device=maps.device)
    counts.scatter_add_(-1, place, torch.ones_like(maps, dtype=torch.float64))
    shares: Tensor = torch.special.entr(counts / maps.shape[-1])
    return shares.sum(-1)


def normalised_entropies(entropies: FloatArray, form: str) -> FloatArray:
    """Entropies of one layer in the form "minmax" or "variance"; all equal ones give 0.5."""
    steady = settled(entropies)
    if steady.min() == steady.max():
        return np.full(len(entropies), 0.5)
    return normaliser_by_name(form)(steady)


def _check(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise CriterionError(f"feature_entropy takes {what} {' or '.join(map(repr, known))}, not {value!r}")
