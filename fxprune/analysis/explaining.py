"""Answers about the channel graph: why are these two tied, why is this one pinned, what does it look like."""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

from fxprune.analysis.groups import ChannelNode, Ties
from fxprune.axes.expressions import Axis, Channels
from fxprune.errors import AnalysisError


class Explainer:
    """Shortest paths over the channel graph, printed as source-level steps."""

    def __init__(
        self,
        graph: Ties,
        tensors: Mapping[str, Sequence[Axis]],
        places: Mapping[int, tuple[str, int]],
        first_name: Callable[[str], str] = str,
    ) -> None:
        self._graph = graph
        self._tensors = tensors
        self._places = places
        self._first_name = first_name
        self._towards_pin: dict[ChannelNode, ChannelNode] | None = None

    def explain(self, first: str, second: str | None) -> str:
        """See :meth:`fxprune.analysis.solving.ChannelGraph.explain`."""
        if not isinstance(first, str) or not isinstance(second, str | None):
            raise AnalysisError("explain takes names of tensors and modules, such as 'conv1' or 'conv1.weight:0'")
        starts = self._nodes(first)
        if second is None:
            return self._explain_pins(first, starts)
        goals = self._nodes(second)
        from networkx import has_path, shortest_path

        graph = self._graph.as_networkx()
        tied = ((a, b) for a in starts for b in goals if has_path(graph, a, b))
        path = next((shortest_path(graph, a, b) for a, b in tied), None)
        if path is None:
            return f"{first} and {second} share no channel group"
        note = f"\n{self._explain_pin(path[0])}" if path[0][1] is None else ""
        return self._steps(path) + note

    def pin_of(self, tensor: str, dim: int) -> tuple[str, str]:
        """Reason and cause of the pin nearest to a fixed dim."""
        axis = self._tensors[tensor][dim]
        if not isinstance(axis, Channels):
            return getattr(axis, "why", "its size is fixed"), ""
        path = self._path_to_pin((axis.serial, None))
        if not path:
            return "its size is fixed", ""
        pin = self._graph.nodes[path[-1]]["pin"]
        return pin.reason, str(pin.cause)

    def draw(self, fmt: str) -> str:
        """DOT text of the graph."""
        if fmt != "dot":
            raise AnalysisError(f"unknown format {fmt!r}: choose 'dot' or 'svg'")
        numbers = {node: number for number, node in enumerate(self._graph.nodes)}
        lines = ["graph channels {", "  node [style=filled, fontname=monospace];"]
        for position, component in enumerate(self._graph.components()):
            colour = f"{position * 0.618 % 1:.3f} 0.3 0.95"
            for node in sorted(component, key=numbers.__getitem__):
                shape = "box" if node[1] is None else "ellipse"
                label = _quoted(self._label(node))
                lines.append(f'  n{numbers[node]} [label={label}, shape={shape}, fillcolor="{colour}"];')
        for a, b, data in self._graph.as_networkx().edges(data=True):
            label = _quoted(", ".join(dict.fromkeys(cause.op for cause in data["causes"])))
            lines.append(f"  n{numbers[a]} -- n{numbers[b]} [label={label}];")
        return "\n".join([*lines, "}"])

    def _nodes(self, name: str) -> list[ChannelNode]:
        """The graph's nodes for the dims of a tensor, or the one dim in ``tensor:dim``."""
        found, dims = self._place(name)
        axes = (self._tensors[found][d] for d in dims)
        serials = dict.fromkeys(axis.serial for axis in axes if isinstance(axis, Channels))
        return [node for node in self._graph.nodes if node[0] in serials]

    def _place(self, name: str) -> tuple[str, Sequence[int]]:
        tensor, _, dim = name.partition(":")
        names = (self._first_name(name) for name in (tensor, f"{tensor}.weight"))
        found = next((name for name in names if name in self._tensors), None)
        if found is None:
            near = difflib.get_close_matches(tensor, self._tensors, n=2, cutoff=0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise AnalysisError(f"no parameter, buffer or module with a weight is named {tensor!r}{hint}")
        count = len(self._tensors[found])
        if not dim:
            return found, range(count)
        if not dim.isdecimal() or int(dim) >= count:
            raise AnalysisError(f"{name!r}: write a dim of {found} from 0 to {count - 1} after the colon")
        return found, [int(dim)]

    def _path_to_pin(self, node: ChannelNode) -> list[ChannelNode]:
        """From a node to the nearest one that an op pins; empty where there is none."""
        if self._towards_pin is None:
            self._towards_pin = _next_steps(self._graph)
        if node not in self._towards_pin:
            return []
        path = [node]
        while (following := self._towards_pin[path[-1]]) != path[-1]:
            path.append(following)
        return path

    def _explain_pins(self, name: str, nodes: Sequence[ChannelNode]) -> str:
        return "\n".join(dict.fromkeys(map(self._explain_pin, nodes))) or f"{name} takes part in no dependency"

    def _explain_pin(self, node: ChannelNode) -> str:
        if node[1] is not None:
            return f"{self._label(node)} is not pinned"
        path = self._path_to_pin(node)
        if not path:
            return f"{self._label(node)} is pinned: its size is fixed"
        pin = self._graph.nodes[path[-1]]["pin"]
        line = f"{self._label(node)} is pinned: {pin.reason}, at {pin.cause}"
        return "\n".join([line, *self._ties(path)])

    def _steps(self, path: Sequence[ChannelNode]) -> str:
        return "\n".join([self._label(path[0]), *self._ties(path)])

    def _ties(self, path: Sequence[ChannelNode]) -> Iterator[str]:
        for a, b in pairwise(path):
            yield f"  = {self._label(b)}, by {self._graph.adj[a][b]['cause']}"

    def _label(self, node: ChannelNode) -> str:
        place = self._places.get(node[0])
        return f"{place[0]} dim {place[1]}" if place else str(self._graph.nodes[node].get("origin", node[0]))


def _next_steps(graph: Ties) -> dict[ChannelNode, ChannelNode]:
    """For every node with a way to a pin, the next node on a shortest way; for the pinned ones themselves."""
    pinned = [node for node, data in graph.nodes.items() if "pin" in data and node[1] is None]
    steps = {node: node for node in pinned}
    queue = deque(pinned)
    while queue:
        node = queue.popleft()
        for neighbour in graph.adj[node]:
            if neighbour not in steps:
                steps[neighbour] = node
                queue.append(neighbour)
    return steps


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
