"""Scores channels by the error that remains after the next layers are fitted again without them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx

from fxprune.analysis.groups import Group, Member
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import FloatArray, is_elementwise, owned_by
from fxprune.axes.expressions import IndexArray
from fxprune.calibration import Collector, LayerRows, Observation, Seen, Sums, TapFinder
from fxprune.calibration.collecting import addition_after, norm_after
from fxprune.calibration.effects import OutputErrors, curvatures
from fxprune.calibration.least_squares import Elimination, enough_positions, inverse, products, shrunk_ridge
from fxprune.criteria.base import criterion, removal_order
from fxprune.errors import CriterionError
from fxprune.rules.call import Call, parameter_name
from fxprune.util.progress import name_seed
from fxprune.util.registry import Named

# A wide group loses its channels in at least this many turns.
_TURNS = 48
# Gradients are taken on one sample in so many; their second moments are mixed with the identity in this proportion.
_SHARE, _TRUST = 4, 0.9
# Groups are weighed on at least this many samples.
_FEWEST_SAMPLES = 2


@criterion("reconstruction")
@dataclass(frozen=True)
class Reconstruction(Named):
    """The error that a channel's removal adds to the outputs of the layers that read it, after each is fitted again by
    least squares on the remaining channels. It is a share of the variance of the output (or of the sum, if the output
    is added to a stream), summed over the layers.

    Channels are removed one by one, always the one that adds least, or in a given order. A channel that a layer can
    recompute from others costs nothing, so the widths follow from what can be recovered.

    For linear layers over tokens, an error counts as much as it changes the network's predictions, to second order: the
    curvature of the layer's output is taken from gradients on a quarter of the samples (Martens and Grosse, 2015, arXiv
    1503.05671, section 3, for the output's factor).

    Args:
        order: per group, the scores whose order is followed; empty to take the channel that adds least.
        positions: the output positions used of each sample; more if a layer would have less than eight rows for each of
            its features.
        ridge: see :func:`fxprune.calibration.least_squares.shrunk_ridge`.
        most_features: layers with more features are not used.
        weigh: whether groups are compared by the errors of the network's outputs.
        curvature: whether an error over tokens counts as it changes the predictions.

    Raises:
        CriterionError: a value is invalid.
    """

    order: Mapping[Group, FloatArray] = field(default_factory=dict, repr=False)
    positions: int = 8
    ridge: float = 1e-3
    most_features: int = 8192
    weigh: bool = True
    curvature: bool = True

    def __post_init__(self) -> None:
        if self.positions < 1 or self.most_features < 1 or not self.ridge >= 0:
            raise CriterionError("positions and most_features must be at least 1, ridge at least 0")

    def observe(self, group: Group, finder: TapFinder, tensors: Mapping[str, Tensor]) -> Any:
        """Second moments of the features of every layer that reads the group, and the variance of its readout."""
        found = []
        for call, tap, name in finder.consumers(group):
            member = next(m for m in group.members if m.tensor == name and m.role == "in")
            rows, weight = LayerRows.of(call, transposed=True), tensors[name]
            dense = call.name == "linear" or call.number("groups") == 1
            if rows is None or not dense or not is_elementwise(member.axis) or member.dim != rows.input_dim:
                continue
            outputs, features = rows.matrix(weight, 1).shape[1:]
            if features > self.most_features:
                continue
            moments = _Moments(features, rows, self.positions, name, weight.device)
            readout = _Readout.of(call, finder.calls, tensors)
            variance = Observation(finder.raw(readout.node), _Variance(rows.channel_dim, outputs))
            found.append(_Part(call, member, rows, readout, Observation(finder.raw(tap.node), moments), variance))
        return found

    def score_observed(
        self, group: Group, observed: Any, tensors: Mapping[str, Tensor], graph: ChannelGraph
    ) -> FloatArray | None:
        """Scores of shape ``(group.size,)``; None if no layer that reads the group is understood."""
        parts = [part.elimination(group, tensors, self.ridge) for part in observed]
        known = [part for part in parts if part is not None]
        if not known:
            return None
        given = self.order.get(group)
        return _scores(known, group.size, None if given is None else removal_order(given))

    def refined(self, observed: Mapping[Group, list[_Part]], collector: Collector) -> dict[Group, list[_Part]]:
        """The observations, with how much errors of the layers that read tokens change the network's predictions."""
        parts = [part for parts in observed.values() for part in parts if part.call.name == "linear"]
        nodes = list(dict.fromkeys(part.readout.node for part in parts if len(part.call.output_shape) > 2))
        if not self.curvature or not nodes or not collector.calibration.again:
            return dict(observed)
        found = curvatures(collector, max(_FEWEST_SAMPLES, collector.calibration.seen // _SHARE), nodes)
        refined = {g: [p._replace(curvature=found.get(p.readout.node)) for p in own] for g, own in observed.items()}
        if _in_nats(refined):
            return refined
        return {group: [part.relative() for part in parts] for group, parts in refined.items()}

    def weighed(
        self,
        scores: Mapping[Group, FloatArray | None],
        observed: Mapping[Group, list[_Part]],
        tensors: Mapping[str, Tensor],
        collector: Collector,
    ) -> dict[Group, FloatArray | None]:
        """The scores of all groups, scaled to errors of the network's outputs; unchanged if they cannot be compared."""
        known = {group: own for group in observed if (own := scores[group]) is not None}
        if not self.weigh or len(known) < 2 or not collector.calibration.again or _in_nats(observed):
            return dict(scores)
        samples = max(_FEWEST_SAMPLES, math.ceil(collector.calibration.seen / len(known)))
        outputs = OutputErrors(collector, samples)
        factors = {}
        for group, own in known.items():
            gone = removal_order(own)[: max(group.size // 2, 1)]
            replaced: dict[str, Tensor] = {}
            for part in observed[group]:
                replaced |= part.without(group, gone, tensors, self.ridge)
            factors[group] = outputs.of(replaced) / max(float(own[gone].sum()), 1e-9)
        usual = [factor for factor in factors.values() if 0 < factor < math.inf]
        # A group without a usable effect (no output changes, or all do) gets the smallest or the largest one.
        limits = (min(usual), max(usual)) if usual else (1.0, 1.0)
        weights = {group: limits[1] if math.isnan(f) else float(np.clip(f, *limits)) for group, f in factors.items()}
        return {**scores, **{group: own * weights[group] for group, own in known.items()}}


class _Part(NamedTuple):
    """One layer that reads a group."""

    call: Call
    member: Member
    layer: LayerRows
    readout: _Readout
    moments: Any
    variance: Any
    curvature: Tensor | None = None  # how much errors of the readout matter; None if that is not known

    def blocks(self, group: Group, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """The features of each channel, ``(channels, features of a channel)``; None if channels share some."""
        channels, elements = owned_by(self.member.axis, group.variable)
        counts = np.bincount(channels, minlength=group.size)
        if len(np.unique(elements)) < len(elements) or counts.min() < 1 or counts.min() != counts.max():
            return None
        area = math.prod(self.layer.kernel)
        columns = elements.reshape(group.size, -1)
        return torch.from_numpy((columns[:, :, None] * area + np.arange(area)).reshape(group.size, -1))

    def elimination(self, group: Group, tensors: Mapping[str, Tensor], ridge: float) -> Elimination | None:
        """The errors from removing channels; None if they cannot be computed."""
        blocks, total = self.blocks(group, tensors), self.variance.mean()
        if blocks is None or not total > 0:
            return None
        rows = self.layer.matrix(tensors[self.member.tensor].detach(), 1)[0].double().cpu()
        rows = rows * self.readout.scale.reshape(-1, 1).double().cpu()
        if self.curvature is None:
            rows = rows / total**0.5
        else:
            even = self.curvature.diagonal().mean() * torch.eye(len(rows), dtype=torch.float64)
            rows = torch.linalg.cholesky(even.lerp(self.curvature, _TRUST)).T @ rows
        return Elimination(self.moments.centred(), rows, blocks, self.moments.ridge(ridge))

    def relative(self) -> _Part:
        """The part with a curvature that leaves its errors shares of the variance of its output."""
        if self.curvature is None:
            return self
        return self._replace(curvature=self.curvature / (self.curvature.diagonal().mean() * self.variance.mean()))

    def without(self, group: Group, gone: IndexArray, tensors: Mapping[str, Tensor], ridge: float) -> dict[str, Tensor]:
        """The layer's tensors without some channels, with the rest fitted again."""
        blocks, name = self.blocks(group, tensors), self.member.tensor
        if blocks is None:
            return {}
        matrix = self.layer.matrix(tensors[name].detach(), 1)[0]
        fitted, intercept = self.moments.without(blocks[gone].reshape(-1), matrix, ridge)
        weight = self.layer.weight(fitted[None], tensors[name].shape)
        bias = parameter_name(self.call.arguments.get("bias"))
        if bias is not None:
            return {name: weight, bias: tensors[bias] + intercept}
        mean = self.readout.mean
        return {name: weight, mean: tensors[mean] - intercept} if mean else {name: weight}


def _scores(parts: Sequence[Elimination], channels: int, order: Any) -> FloatArray:
    """The error that each channel adds when it is removed, ascending in the order of removal."""
    left = np.arange(channels)
    scores = np.zeros(channels)
    highest = 0.0
    together = max(1, channels // _TURNS)
    while len(left):
        costs = torch.stack([part.costs() for part in parts]).sum(0).numpy()[left]
        # Among equals, the highest index is removed first.
        turn = order[:together] if order is not None else left[np.lexsort((-left, costs))[:together]]
        own = costs[np.searchsorted(left, turn)]
        added = sum([part.remove(turn.tolist()) for part in parts])
        # Channels removed together add more error than the sum of each alone.
        for channel, cost in zip(turn, own * (added / max(own.sum(), 1e-300)), strict=True):
            # To preserve the order, a step costs at least as much as the one before.
            highest = scores[channel] = max(highest, cost) * (1 + 1e-9) + 1e-15
        left = np.setdiff1d(left, turn)
        order = None if order is None else order[together:]
    return scores


def _in_nats(observed: Mapping[Group, Sequence[_Part]]) -> bool:
    """Whether all errors are weighted by curvatures: then they are divergences of the predictions, and comparable."""
    return all(part.curvature is not None for parts in observed.values() for part in parts)


class _Moments(Sums):
    """Second moments of the features of one layer; the last feature is the constant one."""

    balanced = True

    def __init__(self, features: int, rows: LayerRows, positions: int, name: str, device: torch.device) -> None:
        super().__init__(xx=(features + 1, features + 1))
        self._rows = rows
        self._least = positions
        self._positions: int | None = None
        self._name = name

    def update(self, seen: Seen) -> None:
        """Add one batch of the layer's input."""
        # The same positions in every batch, so that moments do not depend on the batch size.
        if self._positions is None:
            self._positions = enough_positions(self._least, self.held["xx"].shape[0] - 1, seen.expected)
        generator = torch.Generator().manual_seed(name_seed(self._name))
        places = self._rows.draw_of_input(seen.value, self._positions, generator)
        rows = self._rows.features(seen.value, 1, places)
        each = self._rows.counts(rows, seen.samples)
        if seen.weights is not None:
            each = seen.weights.times(each, self._rows.positions_of_input(seen.value), places)
        self.add("xx", products(rows, rows, each, f"the layer of {self._name}")[0])

    @property
    def rows(self) -> float:
        """The number of rows added so far."""
        return float(self.held["xx"][-1, -1])

    def centred(self) -> Tensor:
        """The covariance of the features."""
        xx = self.held["xx"].cpu() / self.held["xx"][-1, -1].clamp_min(1).cpu()
        return xx[:-1, :-1] - torch.outer(xx[:-1, -1], xx[:-1, -1])

    def ridge(self, ridge: float) -> float:
        """The ridge, increased if there are few rows."""
        return shrunk_ridge(ridge, self.centred(), self.rows)

    def without(self, gone: Tensor, matrix: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """A matrix without some features, with the rest fitted again, and the intercept that corrects the means."""
        xx, matrix = self.centred(), matrix.double().cpu()
        left = torch.ones(len(xx), dtype=torch.bool)
        left[gone] = False
        fitted = matrix * left
        solved = inverse(xx[left][:, left], self.ridge(ridge))
        fitted[:, left] += matrix[:, gone] @ xx[gone][:, left] @ solved
        means = self.held["xx"][:-1, -1].cpu() / max(self.rows, 1.0)
        return fitted, (matrix - fitted) @ means


class _Variance(Sums):
    """The variance of a layer's readout, summed over its channels."""

    balanced = True

    def __init__(self, channel_dim: int, channels: int) -> None:
        super().__init__(total=(channels,), squares=(channels,), count=())
        self._channel_dim = channel_dim

    def update(self, seen: Seen) -> None:
        """Take in one batch."""
        others = [dim for dim in range(seen.value.ndim) if dim != self._channel_dim % seen.value.ndim]
        value = seen.value.to(torch.promote_types(seen.value.dtype, torch.float32))
        each = None if seen.weights is None else seen.weights.at(value, self._channel_dim)
        weighted = value if each is None else value * each
        count = value.numel() / max(value.shape[self._channel_dim], 1)
        self.add("total", weighted.mean(others).double() * count)
        self.add("squares", (weighted * value).mean(others).double() * count)
        self.add("count", count if each is None else each.sum(dtype=torch.float64))

    def mean(self) -> float:
        """Summed over channels."""
        count = max(float(self.held["count"]), 1.0)
        return float((self.held["squares"] / count - (self.held["total"] / count).square()).clamp_min(0).sum())


@dataclass(frozen=True)
class _Readout:
    """The node at which a layer's output is compared, and its scale there."""

    node: fx.Node  # after a batch norm, and after the sum that the output goes into, if any
    scale: Tensor  # of each channel there
    mean: str = ""  # the running mean of that batch norm; empty where there is none

    @classmethod
    def of(cls, call: Call, calls: Mapping[fx.Node, Call], tensors: Mapping[str, Tensor]) -> _Readout:
        """The readout of a layer."""
        node, mean = call.node, ""
        scale = tensors[str(parameter_name(call.arguments["weight"]))].new_ones(())
        norm = norm_after(node, calls)
        if norm is not None:
            names = {n: parameter_name(calls[norm].arguments.get(n)) for n in ("running_mean", "running_var", "weight")}
            if names["running_var"] is not None and names["weight"] is not None:
                node, mean = norm, names["running_mean"] or ""
                variance = tensors[names["running_var"]].detach().double()
                scale = tensors[names["weight"]].detach().double() * (variance + 1e-5).rsqrt()
        after = addition_after(node, calls)
        return cls(node if after is None else after[0], scale, mean)
