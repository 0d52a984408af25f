"""Channels that must stay so that no dim of any tensor becomes empty.

Every group keeps at least one channel. But an axis that gathers only some of the group's channels (one half of a
shuffled width) could still lose all of its elements while the kept channels are elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np
from torch import Tensor

from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import FloatArray, Mask, channels_of, is_elementwise
from fxprune.axes.expressions import Axis, Channels, Concat, Fixed, Gather, IndexArray, Product, variables
from fxprune.calibration import Collector
from fxprune.cost.budgets import budget_model
from fxprune.criteria import Criterion, Reconstruction, judge
from fxprune.criteria.base import Selection
from fxprune.errors import CriterionError


def protected_channels(
    axes: Iterable[Axis], preference: Mapping[Channels, FloatArray], fewest: Iterable[tuple[Axis, int]] = ()
) -> dict[Channels, Mask]:
    """For every variable, a mask of channels that must stay so that each axis has an element; ``fewest``: as many.

    The choice is greedy and small: first the channel that serves most axes at risk, ties by highest preference (then
    lowest index), until every axis is served. ``preference`` has one number per channel of each variable that may be
    cut.
    """
    channels = _AllChannels(preference)
    open_sets = {ids.tobytes(): ids for axis in _distinct(axes) for ids in channels.required_sets(axis)}
    pending = list(open_sets.values())
    while pending:
        serves = np.bincount(np.concatenate(pending), minlength=len(channels.preference))
        best = int(np.lexsort((-np.arange(len(serves)), channels.preference, serves))[-1])
        channels.chosen[best] = True
        pending = [ids for ids in pending if not channels.chosen[ids].any()]
    for axis, count in fewest:
        channels.keep_some(axis, count)
    return channels.masks()


class _AllChannels:
    """The channels of all variables, numbered consecutively, so that sets of them are arrays of numbers."""

    def __init__(self, preference: Mapping[Channels, FloatArray]) -> None:
        self._starts: dict[Channels, int] = {}
        total = 0
        for variable in preference:
            self._starts[variable] = total
            total += variable.size
        self.preference = np.concatenate([*preference.values(), np.zeros(0)])
        self.chosen = np.zeros(total, dtype=np.bool_)

    def masks(self) -> dict[Channels, Mask]:
        return {v: self.chosen[start : start + v.size] for v, start in self._starts.items()}

    def keep_some(self, axis: Axis, count: int) -> None:
        """Choose the channels of ``count`` elements: those already chosen, then by their least preferred channel."""
        needs = self._needs(axis)
        if needs:
            preference = np.where(self.chosen, np.inf, self.preference)
            weakest = np.min([np.where(ids >= 0, preference[ids], np.inf) for ids in needs], axis=0)
            for element in np.argsort(-weakest, kind="stable")[:count]:
                self.chosen[[ids[element] for ids in needs if ids[element] >= 0]] = True

    def _needs(self, axis: Axis) -> list[IndexArray]:
        """For each variable that may be cut, the channel that each element needs, or -1."""
        cut = [v for v in dict.fromkeys(variables(axis)) if v in self._starts]
        return [np.where((channel := channels_of(axis, v)) >= 0, channel + self._starts[v], -1) for v in cut]

    def required_sets(self, axis: Axis) -> list[IndexArray]:
        """Sets of channels of which one each must stay so that the axis is not empty; no set if it cannot become empty.

        If elements need channels of several variables, the element with the highest preference of its least preferred
        channel is picked, and each of its channels is a set of its own.
        """
        needs = self._needs(axis)
        if not needs or bool((np.max(needs, axis=0) < 0).any()):
            return []
        if is_elementwise(axis):
            return [np.unique(np.max(needs, axis=0))]
        weakest = np.min([np.where(ids >= 0, self.preference[ids], np.inf) for ids in needs], axis=0)
        chosen = int(weakest.argmax())
        return [ids[[chosen]] for ids in needs if ids[chosen] >= 0]


def _distinct(axes: Iterable[Axis]) -> list[Axis]:
    """The parts of all axes that are at risk, each once."""
    return list({id(part): part for axis in axes for part in _at_risk(axis)}.values())


def _at_risk(axis: Axis) -> Iterator[Axis]:
    """The parts that make the whole axis empty if they become empty."""
    if isinstance(axis, Product):
        for factor in axis.factors:
            yield from _at_risk(factor)
    elif not _never_empty(axis):
        yield axis


def _never_empty(axis: Axis) -> bool:
    if isinstance(axis, (Channels, Fixed)):
        return True
    if isinstance(axis, Product):
        return all(_never_empty(factor) for factor in axis.factors)
    if isinstance(axis, Concat):
        return any(_never_empty(part) for part in axis.parts)
    return _gathers_a_whole(axis)


def _gathers_a_whole(axis: Gather) -> bool:
    """Whether the gather contains every channel of some variable, so that one of them always stays."""
    if not is_elementwise(axis.base):
        return False
    channels = ((v, channels_of(axis, v)) for v in dict.fromkeys(variables(axis)))
    return any(len(np.unique(u[u >= 0])) == v.size for v, u in channels)


Scores = Mapping[Group, FloatArray]


def width_scores(
    graph: ChannelGraph,
    criterion: Criterion,
    scores: Scores | Selection | None,
    tensors: Mapping[str, Tensor],
    collector: Collector | None,
    budget: str,
    spared: Collection[Group] = (),
) -> dict[Group, FloatArray] | None:
    """For each channel, the error that its removal adds per unit of budget that it saves, in the layout of ``scores``.

    The error is that of :class:`~fxprune.criteria.reconstruction.Reconstruction`. The saving is counted at full width.
    Ranking the channels of all groups by this ratio greedily minimises the error at a budget.

    Args:
        graph: the channel graph.
        criterion: the criterion.
        scores: the criterion's scores: per group one number per channel, higher = keep; None without weights.
        tensors: every parameter and buffer by name.
        collector: runs over the calibration data.
        budget: the name of the budget.
        spared: groups that lose no channels.

    Raises:
        CriterionError: the criterion selects channels and gives no scores.
        CalibrationError: there is no calibration.
    """
    if scores is None:
        return None
    if not isinstance(scores, Mapping):
        raise CriterionError('scope="reconstruction" needs a criterion that scores channels, not one that selects them')
    known = isinstance(criterion, Reconstruction)
    errors = scores if known else judge(Reconstruction(order=scores), graph, tensors, collector, spared)
    assert isinstance(errors, Mapping)
    model = budget_model(graph, budget)
    saved = {group: max(model.marginal(group.variable, {}), 0.0) for group in errors}
    least = min((s for s in saved.values() if s > 0), default=1.0)
    return {group: found * (least / (saved[group] or least)) for group, found in errors.items()}
