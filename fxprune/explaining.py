"""Answers about the channel graph: why are these two tied, why is this one pinned, what does it look like."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx

from fxprune.axes.expressions import Axis, Channels
from fxprune.errors import AnalysisError
from fxprune.groups import ChannelNode


class Explainer:
    """Shortest paths over the channel graph, printed as source-level steps."""

    def __init__(
        self,
        graph: nx.Graph,
        tensors: Mapping[str, Sequence[Axis]],
        places: Mapping[int, tuple[str, int]],
    ) -> None:
        self._graph = graph
        self._tensors = tensors
        self._places = places
        self._nearest_pins: dict[ChannelNode, list[ChannelNode]] | None = None

    def explain(self, first: str, second: str | None) -> str:
        """See :meth:`fxprune.analysis.ChannelGraph.explain`."""
        starts = self._nodes(first)
        if second is None:
            return self._explain_pin(first, starts)
        goals = self._nodes(second)
        for start in starts:
            for goal in goals:
                if start[1] is not None and self._tied(start, goal):
                    return self._steps(nx.shortest_path(self._graph, start, goal))
        return f"{first} and {second} share no channel group"

    def _tied(self, start: ChannelNode, goal: ChannelNode) -> bool:
        known = start in self._graph and goal in self._graph
        return known and bool(nx.has_path(self._graph, start, goal))

    def pin_of(self, tensor: str, dim: int) -> tuple[str, str]:
        """Reason and cause of the pin nearest to a fixed dim."""
        axis = self._tensors[tensor][dim]
        if not isinstance(axis, Channels):
            return getattr(axis, "why", "its size is fixed"), ""
        path = self._pins().get((axis.serial, None))
        if not path:
            return "its size is fixed", ""
        pin = self._graph.nodes[path[0]]["pin"]
        return pin.reason, str(pin.cause)

    def draw(self, fmt: str) -> str:
        """DOT text of the graph."""
        if fmt != "dot":
            raise AnalysisError(f"unknown format {fmt!r}: the channel graph is drawn as 'dot'")
        lines = ["graph channels {", "  node [style=filled, fontname=monospace];"]
        for number, component in enumerate(nx.connected_components(self._graph)):
            colour = f"{(number * 0.618) % 1:.3f} 0.3 0.95"
            for node in sorted(component, key=str):
                shape = "box" if node[1] is None else "ellipse"
                lines.append(f'  "{_key(node)}" [label="{self._label(node)}", shape={shape}, fillcolor="{colour}"];')
        for a, b, data in self._graph.edges(data=True):
            lines.append(f'  "{_key(a)}" -- "{_key(b)}" [label="{data["cause"].op}"];')
        return "\n".join([*lines, "}"])

    # -- inside -----------------------------------------------------------------------------------------------------

    def _nodes(self, name: str) -> list[ChannelNode]:
        tensor, _, dim = name.partition(":")
        candidates = [tensor, f"{tensor}.weight"]
        found = next((c for c in candidates if c in self._tensors), None)
        if found is None:
            raise AnalysisError(f"no parameter or module named {tensor!r} in the network")
        dims = [int(dim)] if dim else range(len(self._tensors[found]))
        serials = {axis.serial: None for axis in (self._tensors[found][d] for d in dims) if isinstance(axis, Channels)}
        return [node for serial in serials for node in self._by_serial().get(serial, [])]

    def _by_serial(self) -> dict[int, list[ChannelNode]]:
        nodes: dict[int, list[ChannelNode]] = {}
        for node in self._graph.nodes:
            nodes.setdefault(node[0], []).append(node)
        return nodes

    def _pins(self) -> dict[ChannelNode, list[ChannelNode]]:
        if self._nearest_pins is None:
            pinned = {n for n, data in self._graph.nodes(data=True) if "pin" in data and n[1] is None}
            paths = nx.multi_source_dijkstra_path(self._graph, pinned, weight=None) if pinned else {}
            self._nearest_pins = dict(paths)
        return self._nearest_pins

    def _explain_pin(self, name: str, starts: list[ChannelNode]) -> str:
        lines = []
        for start in starts:
            if start[1] is not None:
                lines.append(f"{self._label(start)} is not pinned")
                continue
            path = self._pins().get(start)
            if not path:
                continue
            pin = self._graph.nodes[path[0]]["pin"]
            lines.append(f"{self._label(start)} is pinned: {pin.reason}, at {pin.cause}")
            if len(path) > 1:
                lines.append(self._steps(path[::-1]))
        return "\n".join(lines) or f"{name} takes part in no coupling"

    def _steps(self, path: Sequence[ChannelNode]) -> str:
        lines = [self._label(path[0])]
        for a, b in itertools.pairwise(path):
            lines.append(f"  = {self._label(b)}, by {self._graph.edges[a, b]['cause']}")
        return "\n".join(lines)

    def _label(self, node: ChannelNode) -> str:
        data: Mapping[str, Any] = self._graph.nodes[node]
        place = self._places.get(node[0])
        return f"{place[0]} dim {place[1]}" if place else str(data.get("origin", node[0]))


def _key(node: ChannelNode) -> str:
    return f"{node[0]}.{node[1]}"
