"""First-order Taylor criteria: the change of the loss when a channel is zeroed, to first order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fxprune.criteria.base import FloatArray, ScoredGraph
from fxprune.criteria.gradients import ChannelChanges, check_over, gradient_powers
from fxprune.criteria.normalising import normaliser_by_name
from fxprune.criteria.rows import scoped_members, unit_totals
from fxprune.errors import CriterionError
from fxprune.groups import Group
from fxprune.statistics import Observation, TapFinder
from fxprune.statistics.taps import check_tap_rule

__all__ = ["Taylor"]


@dataclass(frozen=True)
class Taylor:
    """First-order Taylor expansion of the loss.

    ``of="weights"``: ``(sum of g w)^2`` over the weights of a channel (Molchanov et al., 2019, arXiv 1906.10771,
    section 3.1), the mean over samples. With a gate on the channel, a factor of 1, that sum is the derivative of the
    loss by the gate, as in the paper; it is read off activations. For ``scope="group"`` gates stand wherever the
    channel is read, at the end of everything that makes it: that gives the sum over the readers' weights, and behind
    batch norm and ReLU that over scale and shift, the paper's gate after batch norm. For ``scope="producer"`` they
    stand at the bare outputs of the layers that make it: the sum over their filters and biases. ``each=True`` takes
    ``sum of (g w)^2`` over single weights instead.

    ``of="activations"``: ``|mean over positions of z dL/dz|`` of each sample at each tap, the mean over samples, scaled
    to unit L2 norm in the layer (Molchanov et al., 2017, arXiv 1611.06440, section 2.2).

    Powers and magnitudes are taken sample by sample, or of batches' mean gradients with ``over="batch"`` (then scores
    depend on the batches), never of the mean gradient of all data, which says nothing of a network trained on them.

    Args:
        of: "weights" or "activations".
        over: "sample" or "batch"; with ``each``, "sample" runs the network sample by sample.
        each: whether every weight counts by itself.
        squared: of the weights, whether squares are taken or magnitudes.
        scope: of the weights, "group" (all that go with the channel) or "producer" (the filters that make it).
        tap: of the activations, where they are read.
        normalise: see :class:`~fxprune.criteria.magnitude.Magnitude`; by default "none" for weights, whose scores are
            all in units of the squared loss, and "l2" for activations.

    Raises:
        CriterionError: an argument is none of these.
    """

    of: str = "weights"
    over: str = "sample"
    each: bool = False
    squared: bool = True
    scope: str = "group"
    tap: str = "normalised"
    normalise: str | None = None

    def __post_init__(self) -> None:
        if self.of not in ("weights", "activations"):
            raise CriterionError(f'taylor takes of="weights" or of="activations", not {self.of!r}')
        if self.scope not in ("group", "producer"):
            raise CriterionError(f'taylor takes scope="group" or scope="producer", not {self.scope!r}')
        check_over(self.over)
        check_tap_rule(self.tap)
        normaliser_by_name(self._form)

    @property
    def _form(self) -> str:
        return self.normalise or ("none" if self.of == "weights" else "l2")

    @property
    def _power(self) -> int:
        return 2 if self.squared else 1

    @property
    def name(self) -> str:
        """The registered name."""
        return "taylor" if self.of == "weights" else "taylor_activations"

    def observe(self, group: Group, finder: TapFinder, tensors: Mapping[str, Tensor]) -> Any:
        """Activations and their gradients, or gradients of the channel's weights."""
        if self.of == "activations":
            taps = finder.taps(group, self.tap)
            return [Observation(tap, ChannelChanges(tap.units, self.over, 1, mean=True)) for tap in taps]
        if self.each:
            return finder.parameters(group, gradient_powers(self.over, self._power))
        readings = finder.readings(group) if self.scope == "group" else []
        # One statistic for all places: what they say of a channel adds up before it is squared.
        gate = ChannelChanges(group.size, self.over, self._power)
        return [Observation(tap, gate) for tap in readings or finder.taps(group, "producer")]

    def score_observed(
        self, group: Group, observed: Any, tensors: Mapping[str, Tensor], graph: ScoredGraph
    ) -> FloatArray | None:
        """Scores of shape ``(group.size,)``; None where nothing was observed."""
        normalise = normaliser_by_name(self._form)
        if self.of == "weights" and self.each:
            return normalise(self._weight_changes(group, observed, tensors, graph))
        found = [s.mean().cpu().numpy() for s in dict.fromkeys(observed)]
        return np.mean([normalise(values) for values in found], axis=0) if found else None

    def _weight_changes(
        self, group: Group, observed: Any, tensors: Mapping[str, Tensor], graph: ScoredGraph
    ) -> FloatArray:
        total = np.zeros(group.size)
        for member in scoped_members(self.scope, group, tensors, graph):
            change = observed[member.tensor].mean() * tensors[member.tensor].detach().double().abs() ** self._power
            total += unit_totals(change, member, group.variable)
        return total
