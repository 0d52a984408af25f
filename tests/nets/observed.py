"""The groups that an analysis reports, as sets of entries, to be compared with those of the brute force."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import nn

import fxprune
from fxprune import ChannelGraph
from fxprune.axes.elements import kept_mask
from fxprune.errors import ModelError
from tests.nets.kept import InconsistentKeepError, kept_indices
from tests.nets.oracles import EntryGroup, brute_force_groups
from tests.nets.removal import Entry
from tests.nets.specification import Specification

EntrySet = frozenset[Entry]


def reported_groups(graph: ChannelGraph) -> list[EntryGroup]:
    """Return each group of an analysis as the entries of parameters and buffers that go with each of its units."""
    return [_entries(graph, number) for number in range(len(graph.groups))]


def _entries(graph: ChannelGraph, number: int) -> EntryGroup:
    """What goes with each unit by itself; an entry that two units hold, as row and as column, goes with both."""
    group = graph.groups[number]
    units: list[EntrySet] = []
    for unit in range(group.size):
        masks = {group.variable: np.arange(group.size) != unit}
        kept = {(m.tensor, m.dim): kept_mask(graph.tensors[m.tensor][m.dim], masks) for m in group.members}
        gone = {place: np.flatnonzero(~mask).tolist() for place, mask in kept.items()}
        units.append(frozenset((name, dim, index) for (name, dim), indices in gone.items() for index in indices))
    return EntryGroup(tuple(units))


@dataclass(frozen=True)
class Comparison:
    """Units of the brute force and of an analysis.

    ``unsound``: units of the analysis whose removal breaks a coupling. ``missed``: groups that the brute force finds
    free and of which no unit of the analysis is a part. ``free``: how many groups it finds free.
    """

    unsound: tuple[EntrySet, ...]
    missed: tuple[EntryGroup, ...]
    free: int

    @property
    def equal(self) -> bool:
        """Whether both agree."""
        return not self.unsound and not self.missed


def analyzed(specification: Specification, model: nn.Module) -> ChannelGraph | None:
    """Return the analysis of a network, or None where it says that nothing can be pruned."""
    try:
        return fxprune.analyze(model, specification.sample(2))
    except ModelError:
        return None


def compare(specification: Specification, graph: ChannelGraph | None) -> Comparison:
    """Compare the units of an analysis with the minimal removals; second names of tied parameters are left out.

    A group of one unit never shrinks, so those of the analysis are not looked at.
    """
    if graph is None:
        free = tuple(group for group in brute_force_groups(specification) if group.free)
        return Comparison((), free, len(free))
    reported = {unit for group in reported_groups(graph) if group.free for unit in group.units}
    free = tuple(_first_names(group, graph) for group in brute_force_groups(specification) if group.free)
    missed = tuple(group for group in free if not reported.issuperset(group.units))
    unsound = tuple(unit for unit in reported if not _can_go(specification, graph, unit))
    return Comparison(unsound, missed, len(free))


def _first_names(group: EntryGroup, graph: ChannelGraph) -> EntryGroup:
    return EntryGroup(tuple(frozenset(entry for entry in unit if entry[0] in graph.shapes) for unit in group.units))


def _can_go(specification: Specification, graph: ChannelGraph, unit: EntrySet) -> bool:
    """Whether the coupling lets exactly these entries go."""
    axes = specification.coupling.parameters
    keep = {
        name: [_without(unit, name, dim, size) for dim, size in enumerate(map(len, axes[name]))]
        for name in axes
        if name in graph.shapes
    }
    try:
        kept_indices(specification.coupling, keep)
    except InconsistentKeepError:
        return False
    return True


def _without(unit: Iterable[Entry], name: str, dim: int, size: int) -> list[int]:
    removed = {index for other, at, index in unit if (other, at) == (name, dim)}
    return [index for index in range(size) if index not in removed]
