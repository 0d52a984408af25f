"""The drawing of a network: its operations as data, and as SVG."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from torch import fx

from fxprune.analysis.analyzer import flat_axes, holds_tensor
from fxprune.axes.expressions import Fixed, variables

if TYPE_CHECKING:
    from fxprune.analysis.solving import ChannelGraph


@dataclass(frozen=True)
class DrawnNode:
    """One operation."""

    label: str  # the path of its module, or the op and the module that calls it
    inputs: tuple[int, ...] = ()  # positions of the operations whose results it reads
    groups: tuple[str, ...] = ()  # names of the channel groups that its result is made of
    pin: str = ""  # the pinned widths of its parameters, with reasons; empty if there are none

    def as_list(self) -> list[Any]:
        """Compact JSON data."""
        return [self.label, list(self.inputs), list(self.groups), self.pin]

    @classmethod
    def from_list(cls, data: Sequence[Any]) -> DrawnNode:
        """Read what :meth:`as_list` wrote."""
        label, inputs, groups, pin = data
        return cls(label, tuple(inputs), tuple(groups), pin)


def draw_network(graph: ChannelGraph) -> tuple[DrawnNode, ...]:
    """Every operation on tensors in eval mode, in order, and those captured inside opaque modules."""
    groups = {group.variable: group.name for group in graph.groups}
    pins: dict[str, list[str]] = {}
    for pin in graph.pinned:
        pins.setdefault(pin.tensor.rpartition(".")[0], []).append(
            f"{pin.tensor} dim {pin.dim} ({pin.size}): {pin.reason}"
        )
    drawn: list[DrawnNode] = []
    for captured in (graph.captured, *graph.captured.islands):
        positions: dict[fx.Node, tuple[int, ...]] = {}
        for node in captured.graph.nodes:
            given = [positions[argument] for argument in node.all_input_nodes]
            inputs = given[0] if len(given) == 1 else tuple(dict.fromkeys(itertools.chain(*given)))
            if not _is_drawn(node):
                # A node that is not drawn, such as a size, passes its own inputs on.
                positions[node] = inputs if node.op != "get_attr" else ()
                continue
            positions[node] = (len(drawn),)
            found = (
                groups[v]
                for a in flat_axes(graph.axes.get(node))
                if not isinstance(a, Fixed)
                for v in variables(graph.solver.resolve(a))
                if v in groups
            )
            pin_text = "; ".join(pins.get(str(node.target), [])) if node.op == "call_module" else ""
            drawn.append(DrawnNode(_label(node), inputs, tuple(dict.fromkeys(found)), pin_text))
    return tuple(drawn)


def _is_drawn(node: fx.Node) -> bool:
    if node.op in ("placeholder", "output"):
        return True
    return node.op != "get_attr" and holds_tensor(node.meta.get("val"))


def _label(node: fx.Node) -> str:
    if node.op == "call_module":
        return str(node.target)
    if node.op in ("placeholder", "output"):
        return f"{'input ' if node.op == 'placeholder' else ''}{node.target}"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    path = node.meta.get("module", "")
    return f"{name} in {path}" if path else str(name)


def places(nodes: Sequence[DrawnNode]) -> list[tuple[int, float]]:
    """The row and column of every operation: below all of its inputs, near the middle of their columns."""
    rows: list[int] = []
    columns: list[float] = []
    taken: dict[int, set[float]] = {}
    for node in nodes:
        row = 1 + max((rows[i] for i in node.inputs), default=-1)
        wanted = sum(columns[i] for i in node.inputs) / len(node.inputs) if node.inputs else 0.0
        column = _nearest_free(round(wanted), taken.setdefault(row, set()))
        taken[row].add(column)
        rows.append(row)
        columns.append(column)
    return list(zip(rows, columns, strict=True))


def _nearest_free(wanted: int, taken: set[float]) -> float:
    columns = (column for step in itertools.count() for column in (wanted + step, wanted - step))
    return float(next(column for column in columns if column not in taken))


_WIDTH, _HEIGHT, _GAP_X, _GAP_Y = 210, 22, 24, 14
_LONGEST = 29
_PLAIN = "#f4f4f2"
_STYLE = (
    ".net text{font:11px ui-monospace,monospace;fill:#1a1a1a}.net .width{text-anchor:end;fill:#50504a}"
    ".net path{fill:none;stroke:#9a9a94;stroke-width:1}.net rect{stroke:#6b6b66;stroke-width:1}"
    ".net .pinned{stroke:#3a3a36;stroke-width:2.5;stroke-dasharray:4 2}"
)


def colours(nodes: Sequence[DrawnNode]) -> dict[str, str]:
    """A colour for every channel group, in the order of the network; neighbours differ."""
    names = dict.fromkeys(name for node in nodes for name in node.groups)
    # Steps of the golden angle keep the hues of any run of groups apart.
    return {name: f"hsl({round(i * 137.508) % 360} 65% {82 - 8 * (i % 2)}%)" for i, name in enumerate(names)}


def as_svg(nodes: Sequence[DrawnNode], widths: Mapping[str, str]) -> str:
    """The operations as boxes in the colour of their first group; ``widths``: by group name; dashed edges mark pins."""
    spots = [(column * (_WIDTH + _GAP_X), row * (_HEIGHT + _GAP_Y)) for row, column in places(nodes)]
    left = min((x for x, _ in spots), default=0)
    width = max((x for x, _ in spots), default=0) - left + _WIDTH
    height = max((y for _, y in spots), default=0) + _HEIGHT
    found = {name: (colour, place) for place, (name, colour) in enumerate(colours(nodes).items())}
    edges = [_edge(spots[i], spots[number]) for number, node in enumerate(nodes) for i in node.inputs]
    boxes = [_box(node, *spot, found, widths) for node, spot in zip(nodes, spots, strict=True)]
    view = f"{left - 40:g} -10 {width + 80:g} {height + 20:g}"
    size = f'width="{width + 80:g}" height="{height + 20:g}"'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="net" viewBox="{view}" {size} '
        f'role="img" aria-label="operations of the network, coloured by channel group"><style>{_STYLE}</style>'
    )
    return "\n".join([head, *edges, *boxes, "</svg>"])


def _edge(start: tuple[float, float], end: tuple[float, float]) -> str:
    x, y, to_x, to_y = start[0] + _WIDTH / 2, start[1] + _HEIGHT, end[0] + _WIDTH / 2, end[1]
    if to_y - y <= _GAP_Y:
        return f'<path d="M{x:g} {y:g}L{to_x:g} {to_y:g}"/>'
    # The line goes around the boxes in between.
    side = max(x, to_x) + _WIDTH / 2 + 14
    bend = min(30.0, (to_y - y) / 2)
    turns = f"C{x:g} {y + 8:g} {side:g} {y:g} {side:g} {y + bend:g}L{side:g} {to_y - bend:g}"
    return f'<path d="M{x:g} {y:g}{turns}C{side:g} {to_y:g} {to_x:g} {to_y - 8:g} {to_x:g} {to_y:g}"/>'


def _box(node: DrawnNode, x: float, y: float, found: Mapping[str, tuple[str, int]], widths: Mapping[str, str]) -> str:
    fill = found[node.groups[0]][0] if node.groups else _PLAIN
    mark = ' class="pinned"' if node.pin else ""
    numbers = " ".join(str(found[name][1]) for name in node.groups)
    known = [widths[name] for name in node.groups if name in widths]
    width = (known[0] if len(known) == 1 else f"{len(known)} groups") if known else ""
    # The end of a path tells more than its beginning.
    room = _LONGEST - (len(width) + 1 if width else 0)
    label = node.label if len(node.label) <= room else f"…{node.label[1 - room :]}"
    lines = [node.label, *(f"group {name}: {widths.get(name, '?')}" for name in node.groups)]
    title = escape("\n".join([*lines, *([f"pinned: {node.pin}"] if node.pin else [])]))
    text = f'<text x="{x + 6:g}" y="{y + 15:g}">{escape(label)}</text>'
    text += f'<text class="width" x="{x + _WIDTH - 6:g}" y="{y + 15:g}">{escape(width)}</text>' if width else ""
    return (
        f'<g data-group="{numbers}"><title>{title}</title><rect{mark} x="{x:g}" y="{y:g}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" rx="3" fill="{fill}"/>{text}</g>'
    )
