"""Gradient criteria: how much the loss changes, to first or second order, without a channel or a weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import FloatArray
from fxprune.calibration import Observation, Seen, Sums, TapFinder
from fxprune.calibration.taps import check_tap_rule
from fxprune.criteria.base import criterion, normaliser_by_name
from fxprune.criteria.features import flat
from fxprune.criteria.rows import channel_totals, scoped_members
from fxprune.errors import CriterionError, check_choice
from fxprune.util.registry import Named


class _MeanPower(Sums):
    """The mean of ``|c|^p``, where ``c`` is the sum of all values of one sample, or the mean over one batch's samples.

    Powers are taken per sample or batch because the mean gradient over all data vanishes at the end of training.

    Args:
        shape: the shape of ``c``.
        over: "sample" or "batch".
        power: 1 or 2.
    """

    def __init__(self, shape: tuple[int, ...], over: str, power: int) -> None:
        super().__init__(total=shape, count=())
        self._over = over
        self._power = power
        self._open: Tensor | None = None
        self._number = self._run = -1
        self._samples = 0

    def gather(self, seen: Seen, rows: Tensor) -> None:
        """Add rows of shape ``(samples, *shape)``; rows of one sample or batch are summed over all places."""
        number = seen.batch if self._over == "batch" else seen.run
        if number != self._number:
            self._close()
            self._number = number
        if seen.run != self._run:
            self._run = seen.run
            self._samples += seen.samples
        rows = rows.sum(0, keepdim=True) if self._over == "batch" else rows
        self._open = rows if self._open is None else self._open + rows

    def sums(self) -> Iterable[Tensor]:
        self._close()
        return super().sums()

    def mean(self) -> Tensor:
        """The mean, of the given shape."""
        self._close()
        return self.held["total"] / max(float(self.held["count"]), 1.0)

    def _close(self) -> None:
        if self._open is None:
            return
        changes = self._open / self._samples if self._over == "batch" else self._open
        self.add("total", (changes.abs() if self._power == 1 else changes.square()).sum(0))
        self.add("count", float(len(changes)))
        self._open, self._samples = None, 0


class ChannelChanges(_MeanPower):
    """The mean power of activation times gradient, summed over positions and over all places where it is observed.

    That sum is the derivative of the loss with respect to one factor on the channel at all these places.

    Args:
        channels: the number of channels.
        over, power: as for :class:`_MeanPower`.
        mean: whether to take the mean over positions instead of the sum.
    """

    needs = "gradient"

    def __init__(self, channels: int, over: str, power: int, mean: bool = False) -> None:
        super().__init__((channels,), over, power)
        self._mean = mean

    def update(self, seen: Seen) -> None:
        """Take in one batch at one place."""
        assert seen.gradient is not None
        products = flat(seen.value) * flat(seen.gradient)
        rows = (products.mean(2) if self._mean else products.sum(2)).to(torch.float64)
        if len(rows) != seen.samples:
            # The activation has no sample dim: each sample gets an equal share.
            rows = (rows.sum(0, keepdim=True) / seen.samples).expand(seen.samples, -1)
        self.gather(seen, rows)


class GradientPowers(_MeanPower):
    """The mean power of the gradient with respect to each weight; "sample" runs the network sample by sample."""

    def __init__(self, shape: tuple[int, ...], over: str, power: int) -> None:
        super().__init__(shape, over, power)
        self.needs = "sample gradient" if over == "sample" else "gradient"

    def update(self, seen: Seen) -> None:
        """Take in one batch or sample."""
        assert seen.gradient is not None
        self.gather(seen, seen.gradient.to(torch.float64).unsqueeze(0))


@cache
def gradient_powers(over: str, power: int) -> Callable[[tuple[int, ...]], GradientPowers]:
    """A maker of :class:`GradientPowers` by shape; equal arguments give the same maker, so that groups share it."""
    return partial(GradientPowers, over=over, power=power)


@criterion("taylor_activations", of="activations")
@criterion("taylor")
@dataclass(frozen=True)
class Taylor:
    """First-order Taylor expansion of the loss.

    ``of="weights"``: ``(sum of g w)^2`` over the weights of a channel (Molchanov et al., 2019, arXiv 1906.10771,
    section 3.1), the mean over samples. That sum equals the derivative of the loss with respect to a gate (a factor of
    1) on the channel, as in the paper; it is computed from activations. With ``scope="group"``, the gates are wherever
    the channel is read, after all ops that make it. This gives the sum over the readers' weights and, after batch norm
    and ReLU, the sum over scale and shift: the paper's gate after batch norm. With ``scope="producer"``, they are at
    the direct outputs of the layers that make it: the sum over their filters and biases. ``each=True`` takes ``sum of
    (g w)^2`` over single weights instead.

    ``of="activations"``: ``|mean over positions of z dL/dz|`` of each sample at each tap, the mean over samples, scaled
    to unit L2 norm in the layer (Molchanov et al., 2017, arXiv 1611.06440, section 2.2).

    Powers and magnitudes are taken for each sample, or with ``over="batch"`` for the mean gradient of each batch (then
    scores depend on the batches). The mean gradient over all data would be near zero in a network trained on them.

    Args:
        of: "weights" or "activations".
        over: "sample" or "batch"; with ``each``, "sample" runs the network sample by sample.
        each: whether every weight counts by itself.
        squared: for weights, whether to take squares or magnitudes.
        scope: for weights, "group" (all that belong to the channel) or "producer" (the filters that make it).
        tap: for activations, where they are read.
        normalise: see :class:`~fxprune.criteria.weights.Magnitude`; by default "none" for weights, whose scores are
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
        check_choice(CriterionError, "of", self.of, ("weights", "activations"))
        check_choice(CriterionError, "scope", self.scope, ("group", "producer"))
        check_choice(CriterionError, "over", self.over, ("sample", "batch"))
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
            return [Observation(tap, ChannelChanges(tap.channels, self.over, 1, mean=True)) for tap in taps]
        if self.each:
            return finder.parameters(group, gradient_powers(self.over, self._power))
        readings = finder.readings(group) if self.scope == "group" else []
        # One statistic for all places: their values for a channel are summed before squaring.
        gate = ChannelChanges(group.size, self.over, self._power)
        return [Observation(tap, gate) for tap in readings or finder.taps(group, "producer")]

    def score_observed(
        self, group: Group, observed: Any, tensors: Mapping[str, Tensor], graph: ChannelGraph
    ) -> FloatArray | None:
        """Scores of shape ``(group.size,)``; None where nothing was observed."""
        normalise = normaliser_by_name(self._form)
        if self.of == "weights" and self.each:
            return normalise(self._weight_changes(group, observed, tensors, graph))
        found = [s.mean().cpu().numpy() for s in dict.fromkeys(observed)]
        return np.mean([normalise(values) for values in found], axis=0) if found else None

    def _weight_changes(
        self, group: Group, observed: Any, tensors: Mapping[str, Tensor], graph: ChannelGraph
    ) -> FloatArray:
        total = np.zeros(group.size)
        for member in scoped_members(self.scope, group, tensors, graph):
            change = observed[member.tensor].mean() * tensors[member.tensor].detach().double().abs() ** self._power
            total += channel_totals(change, member, group.variable)
        return total


@criterion("hessian")
@dataclass(frozen=True)
class Hessian(Named):
    """``1/2 sum of h w^2`` over a channel's weights, ``h`` the mean of squared per-sample gradients.

    LeCun et al., 1989, "Optimal Brain Damage", equation 5, with the empirical Fisher information as the Hessian's
    diagonal. The network runs forward and backward sample by sample. The diagonal ignores how the weights of one
    channel interact, which differs between layers, so scores are scaled in each group before groups are compared.

    Args:
        scope: "group" (all weights that belong to the channel) or "producer" (the filters that make it).
        normalise: see :class:`~fxprune.criteria.weights.Magnitude`; with "none" scores are in units of the loss.

    Raises:
        CriterionError: an argument is none of these.
    """

    scope: str = "group"
    normalise: str = "mean"

    def __post_init__(self) -> None:
        check_choice(CriterionError, "scope", self.scope, ("group", "producer"))
        normaliser_by_name(self.normalise)

    def observe(self, group: Group, finder: TapFinder, tensors: Mapping[str, Tensor]) -> Any:
        """Squared gradients of every weight of the group."""
        return finder.parameters(group, gradient_powers("sample", 2))

    def score_observed(
        self, group: Group, observed: Any, tensors: Mapping[str, Tensor], graph: ChannelGraph
    ) -> FloatArray:
        total = np.zeros(group.size)
        for member in scoped_members(self.scope, group, tensors, graph):
            damage = observed[member.tensor].mean() * tensors[member.tensor].detach().to(torch.float64).square()
            total += channel_totals(damage, member, group.variable) / 2
        return normaliser_by_name(self.normalise)(total)
