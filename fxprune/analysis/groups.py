"""Channel groups: sets of channels that can only be removed together, found as components of a graph."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fxprune.axes.elements import Mask
from fxprune.axes.expressions import (
    Axis,
    Cause,
    Channels,
    Concat,
    Dependency,
    Fixed,
    IndexArray,
    Origin,
    Pin,
    Product,
    resolved,
    variables,
)
from fxprune.axes.solver import Solver

if TYPE_CHECKING:
    import networkx as nx

PINNED = None
ChannelNode = tuple[int, int | None]


@dataclass(frozen=True, slots=True)
class Member:
    """One dim of one parameter or buffer that a group cuts.

    ``role``: "out" (rows of the op that makes the channels), "in" (columns of an op that reads them), "scale"
    (per-channel affine parameters and statistics), "selection" (the gate in front of a layer that selects its own
    channels) or "other". ``channels_of(axis, group.variable)`` says which channel each index of the dim belongs to.
    """

    tensor: str
    dim: int
    role: str
    axis: Axis


@dataclass(frozen=True, eq=False)
class Group:
    """``size`` channels, each of which can be removed by itself.

    ``crosses_norm``: a norm, softmax or reduction runs over its channels, so that removal gives the network built
    narrower, not the masked one. ``crosses_add``: it joins two activations element by element (a residual stream or a
    gate). ``numbered``: the network itself picks its channels' weights by number, as a router picks experts.
    """

    name: str
    variable: Channels
    size: int
    members: tuple[Member, ...]
    crosses_norm: bool = False
    crosses_add: bool = False
    numbered: bool = False

    def keeping(self, channels: Sequence[int] | IndexArray) -> Mask:
        """The mask by which these channels stay alone."""
        mask = np.zeros(self.size, dtype=np.bool_)
        mask[np.asarray(channels, dtype=np.int64)] = True
        return mask

    def without(self, channels: Sequence[int] | IndexArray) -> Mask:
        """The mask by which these channels go."""
        return ~self.keeping(channels)


@dataclass(frozen=True, slots=True)
class PinnedWidth:
    """A dim of a parameter that keeps its size, and why. ``cause`` is the op that says so."""

    tensor: str
    dim: int
    size: int
    reason: str
    cause: str


@dataclass(frozen=True)
class Ties:
    """A graph with attributes of nodes and edges, as in networkx, whose import takes longer than an analysis."""

    nodes: dict[ChannelNode, dict[str, Any]] = field(default_factory=dict)
    adj: dict[ChannelNode, dict[ChannelNode, dict[str, Any]]] = field(default_factory=dict)
    # The nodes of each variable, by its serial.
    known: dict[int, list[ChannelNode]] = field(default_factory=dict)

    def add(self, node: ChannelNode, origin: Origin) -> None:
        """Add a node, or replace its origin."""
        self.nodes.setdefault(node, {})["origin"] = origin
        self.adj.setdefault(node, {})

    def components(self) -> Iterator[set[ChannelNode]]:
        """The connected components, as sets of nodes."""
        seen: set[ChannelNode] = set()
        for start in self.nodes:
            if start not in seen:
                found, pending = {start}, [start]
                while pending:
                    new = self.adj[pending.pop()].keys() - found
                    found |= new
                    pending += new
                seen |= found
                yield found

    def as_networkx(self) -> nx.Graph:
        """The same graph as a networkx graph."""
        import networkx as nx

        graph = nx.Graph()
        graph.add_nodes_from(self.nodes.items())
        graph.add_edges_from((a, b, data) for a, near in self.adj.items() for b, data in near.items())
        return graph


def channel_graph(solver: Solver, used: Iterable[Channels] = ()) -> Ties:
    """The graph whose components are the groups.

    A node is (variable, channel set): a variable as it occurs at a tensor and dim, and the part of it that one group
    owns (``PINNED`` where no channel may go). Every dependency an op asked for is an edge labelled with its cause.
    ``used``: variables that are nodes even where no op ties them to another one.
    """
    graph = Ties()
    for variable in used:
        for node in _nodes(graph, variable):
            graph.add(node, variable.origin)
    for dependency in solver.dependencies:
        _add_dependency(graph, dependency)
        _note_fixed_sides(graph, dependency)
    for pin in solver.pins:
        for variable in variables(pin.axis):
            for node in _nodes(graph, variable):
                graph.add(node, variable.origin)
                if node[1] is PINNED:
                    graph.nodes[node].setdefault("pin", pin)
    return graph


def _add_dependency(graph: Ties, dependency: Dependency) -> None:
    left, right = _by_channel_set(graph, dependency.left), _by_channel_set(graph, dependency.right)
    for key in left.keys() & right.keys():
        hub = left[key][0][0]
        for node, origin in (*left[key], *right[key]):
            graph.add(node, origin)
            if node != hub:
                _add_cause(graph, hub, node, dependency.cause)


def _add_cause(graph: Ties, left: ChannelNode, right: ChannelNode, cause: Cause) -> None:
    """Add a cause to an edge. It keeps all of them: it is removed only with the last. ``cause`` is the first."""
    if (known := graph.adj[left].get(right)) is None:
        graph.adj[left][right] = graph.adj[right][left] = {"cause": cause, "causes": [cause]}
    elif cause not in known["causes"]:
        known["causes"].append(cause)


def _note_fixed_sides(graph: Ties, dependency: Dependency) -> None:
    """If one side holds a fixed size, note the dependency as the pin of the other side's pinned variables."""
    for side, other in ((dependency.left, dependency.right), (dependency.right, dependency.left)):
        fixed = _fixed_part(other)
        if fixed is None:
            continue
        for node, origin in _by_channel_set(graph, side).get(PINNED, ()):
            graph.add(node, origin)
            graph.nodes[node].setdefault("pin", Pin(side, fixed.why, dependency.cause))


def _fixed_part(axis: Axis) -> Fixed | None:
    if isinstance(axis, Fixed):
        return axis
    inner = axis.factors if isinstance(axis, Product) else axis.parts if isinstance(axis, Concat) else ()
    return next((found for a in inner if (found := _fixed_part(a)) is not None), None)


def _by_channel_set(graph: Ties, axis: Axis) -> dict[int | None, list[tuple[ChannelNode, Origin]]]:
    found: dict[int | None, list[tuple[ChannelNode, Origin]]] = defaultdict(list)
    for variable in variables(axis):
        for node in _nodes(graph, variable):
            found[node[1]].append((node, variable.origin))
    return found


def _nodes(graph: Ties, variable: Channels) -> list[ChannelNode]:
    known = graph.known.get(variable.serial)
    if known is None:
        roots = {v.serial for v in variables(resolved(variable))}
        known = [(variable.serial, r) for r in sorted(roots)] or [(variable.serial, PINNED)]
        graph.known[variable.serial] = known
    return known


def position(group: Group) -> int:
    """The position of the group's variable among the variables of its first member's axis."""
    first = group.members[0]
    return [v.serial for v in variables(first.axis)].index(group.variable.serial)


def with_unique_names(groups: list[Group]) -> list[Group]:
    """The groups, with numbers added where several have the same name."""
    counts = Counter(group.name for group in groups)
    numbers: dict[str, Iterator[int]] = defaultdict(itertools.count)
    return [g if counts[g.name] == 1 else replace(g, name=f"{g.name}/{next(numbers[g.name])}") for g in groups]
