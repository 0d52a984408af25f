"""First-order Taylor criteria: the change of the loss when a channel is zeroed, to first order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxprune.criteria.base import FloatArray, ScoredGraph
from fxprune.criteria.features import flat
from fxprune.criteria.normalising import normaliser_by_name
from fxprune.criteria.rows import parameter_members, producers, unit_totals
from fxprune.errors import CriterionError
from fxprune.groups import Group
from fxprune.statistics import Observation, Seen, Sums, TapFinder
from fxprune.statistics.taps import check_tap_rule

__all__ = ["Taylor"]

_OF = ("weights", "activations")


@dataclass(frozen=True)
class Taylor:
    """First-order Taylor expansion of the loss.

    ``of="weights"``: ``(sum of g w)^2`` or ``|sum of g w|`` over a channel's weights, ``g`` the gradient averaged over
    all calibration data (Molchanov et al., 2019, arXiv 1906.10771, equation 8); with ``each=True`` ``sum of |g w|``.
    ``of="activations"``: ``|mean over samples and positions of z dL/dz|`` at each tap, scaled to unit L2 norm in the
    layer (Molchanov et al., 2017, arXiv 1611.06440, equation 8); with ``each=True`` the magnitude is taken for each
    sample before the mean. That tells more of a network that was trained on the calibration data, where the mean
    gradient is next to nothing.

    Args:
        of: "weights" or "activations".
        scope: of the weights, "group" (all that go with the channel) or "producer" (the filters that make it).
        squared: of the weights, whether the sum is squared.
        each: whether the magnitude of each weight, or of each sample's activations, counts by itself.
        tap: of the activations, where they are read.
        normalise: see :class:`~fxprune.criteria.magnitude.Magnitude`; by default "none" for weights, whose scores are
            all in units of the loss, and "l2" for activations.

    Raises:
        CriterionError: an argument is none of these.
    """

    of: str = "weights"
    scope: str = "group"
    squared: bool = True
    each: bool = False
    tap: str = "normalised"
    normalise: str | None = None

    def __post_init__(self) -> None:
        if self.of not in _OF:
            raise CriterionError(f'taylor takes of="weights" or of="activations", not {self.of!r}')
        if self.scope not in ("group", "producer"):
            raise CriterionError(f'taylor takes scope="group" or scope="producer", not {self.scope!r}')
        check_tap_rule(self.tap)
        normaliser_by_name(self._form)

    @property
    def _form(self) -> str:
        return self.normalise or ("none" if self.of == "weights" else "l2")

    @property
    def name(self) -> str:
        """The registered name."""
        return "taylor" if self.of == "weights" else "taylor_activations"

    def observe(self, group: Group, finder: TapFinder, tensors: Mapping[str, Tensor]) -> Any:
        """Gradients of the channel's weights, or of its activations."""
        if self.of == "activations":
            return [
                Observation(tap, _ActivationGradients(tap.units, self.each)) for tap in finder.taps(group, self.tap)
            ]
        return finder.parameters(group, GradientMean)

    def score_observed(
        self, group: Group, observed: Any, tensors: Mapping[str, Tensor], graph: ScoredGraph
    ) -> FloatArray | None:
        """Scores of shape ``(group.size,)``; None where nothing was observed."""
        normalise = normaliser_by_name(self._form)
        if self.of == "activations":
            found = [normalise(np.abs(s.result())) for s in observed]
            return np.mean(found, axis=0) if found else None
        members = parameter_members(group, graph) if self.scope == "group" else producers(group, tensors, graph)
        total = np.zeros(group.size)
        for member in members:
            change = observed[member.tensor].mean() * tensors[member.tensor].detach().to(torch.float64)
            total += unit_totals(change.abs() if self.each else change, member, group.variable)
        return normalise(np.square(total) if self.squared else np.abs(total))


class GradientMean(Sums):
    """The gradient of the loss by a parameter, averaged over samples."""

    needs = "gradient"

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(total=shape, samples=())

    def update(self, seen: Seen) -> None:
        """Take in one batch."""
        assert seen.gradient is not None
        self.add("total", seen.gradient.to(torch.float64))
        self.add("samples", float(seen.samples))

    def mean(self) -> Tensor:
        """The gradient, of the shape of the parameter."""
        return self.held["total"] / max(float(self.held["samples"]), 1.0)


class _ActivationGradients(Sums):
    """The mean over samples and positions of activation times gradient."""

    needs = "gradient"

    def __init__(self, units: int, each: bool) -> None:
        super().__init__(total=(units,), samples=())
        self._each = each

    def update(self, seen: Seen) -> None:
        assert seen.gradient is not None
        changes = (flat(seen.value) * flat(seen.gradient)).mean(2)
        self.add("total", (changes.abs() if self._each else changes).sum(0, dtype=torch.float64))
        self.add("samples", float(seen.value.shape[0]))

    def result(self) -> FloatArray:
        return self.array("total") / max(float(self.held["samples"]), 1.0)
