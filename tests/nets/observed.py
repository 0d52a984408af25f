"""The groups that an analysis reports, as sets of entries, to be compared with those of the brute force."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from fxprune.analysis import ChannelGraph
from tests.nets.oracles import EntryGroup, brute_force_groups
from tests.nets.removal import Entry
from tests.nets.specification import Specification


def reported_groups(graph: ChannelGraph) -> list[EntryGroup]:
    """Return each group of an analysis as the entries of parameters and buffers that go with each of its units."""
    return [group for group in (_entries(graph, number) for number in range(len(graph.groups))) if group.units]


def _entries(graph: ChannelGraph, number: int) -> EntryGroup:
    group = graph.groups[number]
    units: dict[int, set[Entry]] = defaultdict(set)
    for member in group.members:
        for index, unit in enumerate(graph.units(group, member.tensor, member.dim).tolist()):
            if unit >= 0:
                units[unit].add((member.tensor, member.dim, index))
    return EntryGroup(tuple(frozenset(units[unit]) for unit in sorted(units)))


@dataclass(frozen=True)
class Comparison:
    """Units of the brute force and of an analysis.

    ``unsound``: units of the analysis that are no union of minimal removals. ``missed``: minimal removals of groups that
    the brute force finds free, which no unit of the analysis is.
    """

    unsound: frozenset[frozenset[Entry]]
    missed: frozenset[frozenset[Entry]]

    @property
    def equal(self) -> bool:
        """Whether both agree on every unit."""
        return not self.unsound and not self.missed


def compare(specification: Specification, graph: ChannelGraph) -> Comparison:
    """Compare the units of an analysis with the minimal removals; second names of tied parameters are left out."""
    groups = [_with_names(group, graph) for group in brute_force_groups(specification)]
    minimal = {unit for group in groups for unit in group.units}
    reported = {unit for group in reported_groups(graph) for unit in group.units}
    unsound = frozenset(unit for unit in reported if not _is_union(unit, minimal))
    free = {unit for group in groups if group.free for unit in group.units}
    return Comparison(unsound, frozenset(free - reported))


def _with_names(group: EntryGroup, graph: ChannelGraph) -> EntryGroup:
    return EntryGroup(tuple(frozenset(entry for entry in unit if entry[0] in graph.shapes) for unit in group.units))


def _is_union(unit: frozenset[Entry], minimal: set[frozenset[Entry]]) -> bool:
    return unit == frozenset[Entry]().union(*(inner for inner in minimal if inner <= unit))
