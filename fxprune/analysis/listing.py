"""The network as text: one line per node, with the axes of its result, their groups, and its source line.

A letter is a group, and ``a:16`` is an axis of its 16 channels; with a plan, ``a:16->12`` says how many stay.
``[a:16 b:8]`` is a concatenation, ``(a:16*4)`` a flattening, and ``~9{a:16}`` picks 9 elements. A plain number is a
size that stays.

>>> import torch, fxprune
>>> from torch import nn
>>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)).eval()
>>> graph = fxprune.analyze(model, torch.randn(2, 3, 4, 4))
>>> print(network_text(graph))
input_1          2 x 3 x 4 x 4
_0 = 0(input_1)  2 x a:8 x 4 x 4
_1 = 1(_0)       2 x a:8 x 4 x 4
_2 = 2(_1)       2 x (a:8*16)
_3 = 3(_2)       2 x 4
return _3
<BLANKLINE>
a   8 channels of 0
"""

from __future__ import annotations

import difflib
import itertools
import string
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import fx

from fxprune.analysis.groups import ChannelNode, Ties
from fxprune.axes.elements import Mask, kept_mask
from fxprune.axes.expressions import Axis, Channels, Concat, Gather, Product
from fxprune.axes.solver import Solver
from fxprune.capture import Captured
from fxprune.capture.decisions import is_check
from fxprune.errors import AnalysisError
from fxprune.rules.ops import canonical_name

if TYPE_CHECKING:
    from fxprune.analysis.solving import ChannelGraph

Masks = Mapping[Channels, Mask]
_WIDEST_CALL = 56
_WIDEST_AXES = 48


def network_text(graph: ChannelGraph, masks: Masks | None = None) -> str:
    """Every node of every captured graph, and the groups of the letters; with ``masks``, widths as ``old->new``."""
    letters = dict(zip((g.variable.serial for g in graph.groups), _letters(), strict=False))
    parts = list(graph.captured.everything())
    lines: list[str] = []
    for part in parts:
        rows = [_row(node, graph, letters, masks or {}) for node in part.graph.nodes if not is_check(node)]
        lines += [*_title(part, len(parts)), *_aligned(rows), ""]
    for group in graph.groups:
        letter = letters[group.variable.serial]
        lines.append(f"{letter:<3} {_width(group.size, group.variable, masks or {})} channels of {group.name}")
    return "\n".join(lines).rstrip("\n")


def axis_text(axis: Axis, letters: Mapping[int, str], masks: Masks) -> str:
    """A resolved axis; ``letters`` are the names of variables by serial number.

    >>> from fxprune.axes.expressions import Channels, Fixed, Origin, concat, product
    >>> a, b = Channels(4, Origin("conv", 0)), Channels(3, Origin("fc", 0))
    >>> axis_text(concat([product([a, Fixed(2)]), b]), {a.serial: "a", b.serial: "b"}, {})
    '[(a:4*2) b:3]'
    """
    if isinstance(axis, Channels):
        letter = letters.get(axis.serial)
        return str(axis.size) if letter is None else f"{letter}:{_width(axis.size, axis, masks)}"
    if isinstance(axis, Product):
        return f"({'*'.join(axis_text(f, letters, masks) for f in axis.factors)})"
    if isinstance(axis, Concat):
        return f"[{' '.join(axis_text(p, letters, masks) for p in axis.parts)}]"
    if isinstance(axis, Gather):
        return f"~{_width(axis.size, axis, masks)}{{{axis_text(axis.base, letters, {})}}}"
    return str(axis.size)


def _letters() -> Iterator[str]:
    """a, b, ..., z, aa, ab, ..."""
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_lowercase, repeat=length))


def _width(size: int, axis: Axis, masks: Masks) -> str:
    kept = int(np.count_nonzero(kept_mask(axis, masks))) if masks else size
    return str(size) if kept == size else f"{size}->{kept}"


def _title(part: Captured, parts: int) -> list[str]:
    if parts == 1:
        return []
    words = [f"part {part.prefix.removesuffix('.')}"] if part.prefix else []
    words += [f"specialization {part.specialization}"] if part.specialization else []
    return [f"-- {', '.join([*words, 'training mode' if part.training else 'eval mode'])}"]


def _row(node: fx.Node, graph: ChannelGraph, letters: Mapping[int, str], masks: Masks) -> tuple[str, str, str]:
    axes = "" if node.op == "output" else _axes_text(graph.axes.get(node), graph.solver, letters, masks)
    return _call(node), axes, str(node.meta.get("source", ""))


def _axes_text(axes: Any, solver: Solver, letters: Mapping[int, str], masks: Masks) -> str:
    if axes is None or axes == ():
        return ""
    if isinstance(axes, dict):
        axes = list(axes.values())
    if isinstance(axes, list) or (isinstance(axes, Sequence) and isinstance(axes[0], (list, tuple, dict, type(None)))):
        return ", ".join(filter(None, (_axes_text(item, solver, letters, masks) for item in axes)))
    return " x ".join(axis_text(solver.resolve(axis), letters, masks) for axis in axes)


def _call(node: fx.Node) -> str:
    if node.op == "placeholder":
        return node.name
    if node.op == "get_attr":
        return f"{node.name} = self.{node.target}"
    shown = [_argument(value) for value in node.args]
    if node.op == "output":
        return f"return {', '.join(shown)}"
    shown += [f"{name}={_argument(value)}" for name, value in node.kwargs.items()]
    callee = str(node.target) if node.op == "call_module" else canonical_name(node.target)
    return f"{node.name} = {callee}({', '.join(shown)})"


def _argument(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        inside = ", ".join(map(_argument, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
    return str(value) if isinstance(value, fx.Node) else repr(value)


def _aligned(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    """Columns as wide as their widest entry, up to a limit."""
    calls = [_cut(call, _WIDEST_CALL) for call, _, _ in rows]
    axes = [_cut(text, _WIDEST_AXES) for _, text, _ in rows]
    left, middle = max(map(len, calls), default=0), max(map(len, axes), default=0)
    lines = zip(calls, axes, (source for _, _, source in rows), strict=True)
    return [f"{call:<{left}}  {text:<{middle}}  {source}".rstrip() for call, text, source in lines]


def _cut(text: str, widest: int) -> str:
    text = text.replace("\n", " ")
    half = (widest - 3) // 2
    return text if len(text) <= widest else f"{text[:half]}...{text[-half:]}"


class Explainer:
    """Explains ties and pins by shortest paths over the channel graph, with the op and source line of each step."""

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
            return "\n".join(dict.fromkeys(map(self._explain_pin, starts))) or f"{first} takes part in no dependency"
        steps = _steps_towards(self._nodes(second), self._graph)
        start = next((node for node in starts if node in steps), None)
        if start is None:
            return f"{first} and {second} share no channel group"
        note = [self._explain_pin(start)] if start[1] is None else []
        return "\n".join([self._label(start), *self._ties(_path(steps, start)), *note])

    def pin_of(self, tensor: str, dim: int) -> tuple[str, str]:
        """The reason and cause of the pin nearest to a fixed dim."""
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
        ties = self._graph.adj.items()
        for a, b, data in ((a, b, tie) for a, near in ties for b, tie in near.items() if numbers[a] < numbers[b]):
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
            some = ", ".join(itertools.islice(self._tensors, 4))
            hint = f"; did you mean {' or '.join(near)}?" if near else f"; there are {some}, ..."
            raise AnalysisError(f"no parameter, buffer or module with a weight is named {tensor!r}{hint}")
        count = len(self._tensors[found])
        if not dim:
            return found, range(count)
        if not dim.isdecimal() or int(dim) >= count:
            raise AnalysisError(f"{name!r}: write a dim of {found} from 0 to {count - 1} after the colon")
        return found, [int(dim)]

    def _path_to_pin(self, node: ChannelNode) -> list[ChannelNode]:
        """The path from a node to the nearest one that an op pins; empty if there is none."""
        if self._towards_pin is None:
            pinned = [node for node, data in self._graph.nodes.items() if "pin" in data and node[1] is None]
            self._towards_pin = _steps_towards(pinned, self._graph)
        return _path(self._towards_pin, node) if node in self._towards_pin else []

    def _explain_pin(self, node: ChannelNode) -> str:
        if node[1] is not None:
            return f"{self._label(node)} is not pinned"
        path = self._path_to_pin(node)
        if not path:
            return f"{self._label(node)} is pinned: its size is fixed"
        pin = self._graph.nodes[path[-1]]["pin"]
        line = f"{self._label(node)} is pinned: {pin.reason}, at {pin.cause}"
        return "\n".join([line, *self._ties(path)])

    def _ties(self, path: Sequence[ChannelNode]) -> Iterator[str]:
        for a, b in pairwise(path):
            yield f"  = {self._label(b)}, by {self._graph.adj[a][b]['cause']}"

    def _label(self, node: ChannelNode) -> str:
        place = self._places.get(node[0])
        return f"{place[0]} dim {place[1]}" if place else str(self._graph.nodes[node].get("origin", node[0]))


def _steps_towards(goals: Sequence[ChannelNode], graph: Ties) -> dict[ChannelNode, ChannelNode]:
    """For every node with a path to one of the goals, the next node on a shortest one; a goal maps to itself."""
    steps = {node: node for node in goals}
    queue = deque(goals)
    while queue:
        node = queue.popleft()
        for neighbour in graph.adj[node]:
            if neighbour not in steps:
                steps[neighbour] = node
                queue.append(neighbour)
    return steps


def _path(steps: Mapping[ChannelNode, ChannelNode], node: ChannelNode) -> list[ChannelNode]:
    path = [node]
    while (following := steps[path[-1]]) != path[-1]:
        path.append(following)
    return path


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
