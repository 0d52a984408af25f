"""Criteria that measure feature maps one by one: a base for them, the simplest ones, and their entropy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import FloatArray
from fxprune.calibration import Mean, Observation, Seen, Statistic, Sums, TapFinder
from fxprune.calibration.taps import check_tap_rule
from fxprune.criteria.base import criterion, normaliser_by_name
from fxprune.criteria.rows import settled
from fxprune.errors import CriterionError, check_choice, check_count
from fxprune.util.registry import Named


def flat(maps: Tensor) -> Tensor:
    """Maps (samples, channels, ...) as (samples, channels, positions), in float32 or wider."""
    wide = maps if maps.dtype in (torch.float32, torch.float64) else maps.to(torch.float32)
    return wide.reshape(*wide.shape[:2], -1)


class PairMean(Sums):
    """The mean over samples of ``measure``, which maps a sample (channels, positions) to (channels, channels)."""

    def __init__(self, channels: int, measure: Callable[[Tensor], Tensor]) -> None:
        super().__init__(total=(channels, channels), samples=())
        self._measure = measure

    def update(self, seen: Seen) -> None:
        """Take in one batch, sample by sample."""
        for sample in flat(seen.value):
            self.add("total", self._measure(sample))
        self.add("samples", float(seen.value.shape[0]))

    def result(self) -> FloatArray:
        """Shape ``(channels, channels)``."""
        return np.round(self.array("total") / max(float(self.held["samples"]), 1.0), 12)


class MapCriterion:
    """The mean of a measure of the feature maps over all samples; subclasses define the measure.

    If a group is tapped at several places, the scores of each are scaled and then averaged.
    """

    tap: str

    def measure(self, maps: Tensor) -> Tensor:
        """One number for each map: from (samples, channels, ...) to (samples, channels)."""
        raise NotImplementedError

    def scaled(self, values: FloatArray) -> FloatArray:
        """Scores from the mean measure at one tap, higher = keep."""
        raise NotImplementedError

    def statistic(self, channels: int) -> Statistic:
        """What is observed at a tap of so many channels."""
        return Mean(channels, self.measure)

    def observe(self, group: Group, finder: TapFinder, tensors: Mapping[str, Tensor]) -> Any:
        """The statistic at every tap."""
        return [Observation(tap, self.statistic(tap.channels)) for tap in finder.taps(group, self.tap)]

    def score_observed(
        self, group: Group, observed: Any, tensors: Mapping[str, Tensor], graph: ChannelGraph
    ) -> FloatArray | None:
        """Scores of shape ``(group.size,)``; None where no activation holds the group's channels."""
        return np.mean([self.scaled(statistic.result()) for statistic in observed], axis=0) if observed else None


@dataclass(frozen=True)
class FeatureCriterion(MapCriterion):
    """A measure of feature maps whose scores are normalised.

    Args:
        tap: where maps are read, see :mod:`fxprune.calibration.taps`.
        normalise: see :class:`~fxprune.criteria.weights.Magnitude`.

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

    def scaled(self, values: FloatArray) -> FloatArray:
        return normaliser_by_name(self.normalise)(values)


@criterion("mean_activation")
@dataclass(frozen=True)
class MeanActivation(FeatureCriterion):
    """The mean of ``|F|`` over samples and positions (Molchanov et al., 2017, arXiv 1611.06440, section 2.2)."""

    def measure(self, maps: Tensor) -> Tensor:
        """The mean magnitude of each map."""
        values = flat(maps)
        magnitude: Tensor = torch.linalg.vector_norm(values, 1, dim=2)
        return magnitude / values.shape[2]


@criterion("apoz")
@dataclass(frozen=True)
class APoZ(FeatureCriterion):
    """One minus the average percentage of zeros after the activation (Hu et al., 2016, arXiv 1607.03250, equation 1).

    Values at or below zero count as zeros, so that activations which leave small negative values can be judged too.
    """

    tap: str = "activated"
    normalise: str = "none"

    def measure(self, maps: Tensor) -> Tensor:
        """The share of positions of each map that are above zero."""
        values = flat(maps)
        # Summing ones and zeros in the maps' own dtype is faster than summing booleans.
        return torch.gt(values, 0, out=torch.empty_like(values)).sum(2) / values.shape[2]


_STEP = 0.35  # between logarithms of nodes: an error of exp(-pi^2 / step), 6e-13
_NODES = 80  # to either side: factors of 1e12


@criterion("hrank")
@dataclass(frozen=True)
class HRank(FeatureCriterion):
    """The mean matrix rank of the maps (Lin et al., 2020, arXiv 2002.10179, equation 5).

    A map of more than two dims is flattened to a matrix that keeps its last dim; a map of one dim is a one-row matrix.
    """

    tap: str = "activated"

    def measure(self, maps: Tensor) -> Tensor:
        """The rank of each map."""
        wide = maps if maps.dtype == torch.float64 else maps.to(torch.float32)
        last = wide.shape[-1] if wide.ndim > 2 else 1
        ranks: Tensor = torch.linalg.matrix_rank(wide.reshape(*wide.shape[:2], -1, last))
        return ranks.to(torch.float64)


@criterion("chip")
@dataclass(frozen=True)
class CHIP(FeatureCriterion):
    """Channel independence: how much the nuclear norm of all maps drops when one is zeroed.

    Sui et al., 2021, arXiv 2110.13981, equation 3. It decomposes one matrix for each sample and layer.

    Args:
        decimals: maps are rounded to this many decimals, as in the authors' code; None for no rounding.
    """

    tap: str = "activated"
    decimals: int | None = 4

    def measure(self, maps: Tensor) -> Tensor:
        """The change of the nuclear norm for each channel."""
        values = flat(maps).to(torch.float64)
        rounded = values if self.decimals is None else values.round(decimals=self.decimals)
        return torch.stack([nuclear_norm_changes(sample) for sample in rounded])


def nuclear_norm_changes(rows: Tensor) -> Tensor:
    """``nuc(X) - nuc(X with row i zeroed)`` for every row i of X, shape ``(rows, columns)``; gives ``(rows,)``.

    One decomposition serves all rows. With ``G = X X'``, ``nuc(X) = trace(G^1/2)`` and ``sqrt(x) = 2/pi`` times the
    integral of ``x / (x + t^2)`` over t > 0; the inverse of ``G + t^2`` without a row and a column follows from that of
    the whole. So the change is ``2/pi`` times the integral of ``sum_j q_ij x_j / (x_j + t^2)^2`` over ``sum_j q_ij /
    (x_j + t^2)``, with the eigenvalues ``x`` and the squared entries ``q`` of the eigenvectors. In log t the integrand
    has no pole within pi/2 of the real line, where the trapezoidal rule gains digits with every node.
    """
    energies, shares, still = _spectrum(rows)
    if not len(energies):
        return rows.new_zeros(len(rows))
    top = energies.amax()
    nodes = torch.exp(_STEP * torch.arange(-_NODES, _NODES + 1, dtype=rows.dtype, device=rows.device))
    inverse = 1 / (energies.unsqueeze(1) / top + nodes.square())
    whole = shares @ inverse + still.unsqueeze(1) / nodes.square()
    change: Tensor = (shares * (energies / top)) @ inverse.square() / whole
    return change @ nodes * (_STEP * 2 / math.pi * top.sqrt())


def _spectrum(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues of ``X X'`` above 0, the share of each row in their vectors, and its share in all others."""
    count, columns = rows.shape
    energies, vectors = torch.linalg.eigh(rows @ rows.T if count <= columns else rows.T @ rows)
    # Values below the rounding error of the largest are zero, although their roots would look significant.
    real = energies > 1e-13 * energies.amax()
    if count <= columns:
        shares = vectors.square()
        return energies[real], shares[:, real], shares[:, ~real].sum(1)
    energies, vectors = energies[real], vectors[:, real]
    shares = (rows @ vectors / energies.sqrt()).square()
    return energies, shares, (1 - shares.sum(1)).clamp(min=0)


_ELEMENTS = 1 << 16  # of the maps handled at a time: temporaries stay in the cache


@criterion("feature_entropy")
@dataclass(frozen=True)
class FeatureEntropy(Named, MapCriterion):
    """The entropy of feature maps, normalised in each layer; one global threshold.

    Shao et al., Sensors 21(19):6601, as the authors' released code computes it. With
    ``estimator="spatial_softmax"`` a map is turned into a distribution over its positions by a softmax; a flat map has
    the *highest* entropy and is removed first. With ``estimator="histogram"`` the values of a map are binned; a flat
    map has entropy 0, and the *lowest* is removed first. The paper does not say which is meant, nor define the bins;
    the default follows the code. Bins over each map's own range would ignore scale, and a map with one high peak would
    fill few of them, so the bins cover the range of all maps of the layer for a sample.

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
        check_choice(CriterionError, "estimator", self.estimator, ("spatial_softmax", "histogram"))
        check_choice(CriterionError, "transform", self.transform, ("sqdev", "plain"))
        check_choice(CriterionError, "normalize", self.normalize, ("minmax", "variance"))
        check_choice(CriterionError, "value_range", self.value_range, ("layer", "map"))
        check_count(CriterionError, "bins", self.bins, 2)

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

    def scaled(self, values: FloatArray) -> FloatArray:
        found = normalised_entropies(values, self.normalize)
        return found if self.estimator == "histogram" else -found


def spatial_entropy(maps: Tensor, squared: bool = True) -> Tensor:
    """Entropy of the softmax over positions, of the squared deviations from the mean or of the map itself.

    From (..., positions) to (...), in nats, float64, between 0 and the logarithm of the number of positions. Maps of
    small values are so close to that limit that in float32 only rounding errors would remain.
    """
    maps = maps.double()
    energy = (maps - maps.mean(-1, keepdim=True)).square_() if squared else maps
    # Below -80 a weight adds nothing, and lower exponents give denormal numbers, which are slow.
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
    """Normalise the entropies of one layer by "minmax" or "variance"; if all are equal, the result is 0.5."""
    steady = settled(entropies)
    if steady.min() == steady.max():
        return np.full(len(entropies), 0.5)
    return normaliser_by_name(form)(steady)
