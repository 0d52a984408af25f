"""A picture as SVG text that stands alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from fxprune.drawing.drawing import DrawnNode
from fxprune.drawing.layout import places

__all__ = ["as_svg", "colours"]

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y = 210, 22, 24, 14
_LONGEST = 32
_PLAIN = "#f4f4f2"
_STYLE = (
    "text{font:11px ui-monospace,monospace;fill:#1a1a1a}path{fill:none;stroke:#9a9a94;stroke-width:1}"
    "rect{stroke:#6b6b66;stroke-width:1}.pinned{stroke:#b3261e;stroke-width:2;stroke-dasharray:4 2}"
)


def colours(nodes: Sequence[DrawnNode]) -> dict[str, str]:
    """A colour for every channel group, in the order of the network; neighbours differ."""
    names = dict.fromkeys(name for node in nodes for name in node.groups)
    # Steps of the golden angle keep the hues of any run of groups apart.
    return {name: f"hsl({round(i * 137.508) % 360} 65% {82 - 8 * (i % 2)}%)" for i, name in enumerate(names)}


def as_svg(nodes: Sequence[DrawnNode]) -> str:
    """The operations as boxes from top to bottom, coloured by their first group; a dashed red edge marks pins."""
    spots = [(column * (_WIDTH + _GAP_X), row * (_HEIGHT + _GAP_Y)) for row, column in places(nodes)]
    left = min((x for x, _ in spots), default=0)
    width = max((x for x, _ in spots), default=0) - left + _WIDTH
    height = max((y for _, y in spots), default=0) + _HEIGHT
    found = colours(nodes)
    edges = [_edge(spots[i], spots[number]) for number, node in enumerate(nodes) for i in node.inputs]
    boxes = [_box(node, *spot, found) for node, spot in zip(nodes, spots, strict=True)]
    view = f"{left - 40:g} -10 {width + 80:g} {height + 20:g}"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}" width="{width + 80:g}" height="{height + 20:g}" '
        f'role="img" aria-label="operations of the network, coloured by channel group"><style>{_STYLE}</style>'
    )
    return "\n".join([head, *edges, *boxes, "</svg>"])


def _edge(start: tuple[float, float], end: tuple[float, float]) -> str:
    x, y, to_x, to_y = start[0] + _WIDTH / 2, start[1] + _HEIGHT, end[0] + _WIDTH / 2, end[1]
    if to_y - y <= _GAP_Y:
        return f'<path d="M{x:g} {y:g}L{to_x:g} {to_y:g}"/>'
    # Around the boxes in between.
    side = max(x, to_x) + _WIDTH / 2 + 14
    bend = min(30.0, (to_y - y) / 2)
    turns = f"C{x:g} {y + 8:g} {side:g} {y:g} {side:g} {y + bend:g}L{side:g} {to_y - bend:g}"
    return f'<path d="M{x:g} {y:g}{turns}C{side:g} {to_y:g} {to_x:g} {to_y - 8:g} {to_x:g} {to_y:g}"/>'


def _box(node: DrawnNode, x: float, y: float, found: Mapping[str, str]) -> str:
    fill = found[node.groups[0]] if node.groups else _PLAIN
    mark = ' class="pinned"' if node.pin else ""
    # The end of a path tells more than its beginning.
    label = node.label if len(node.label) <= _LONGEST else f"…{node.label[1 - _LONGEST :]}"
    lines = [node.label, *(f"group {name}" for name in node.groups), *([f"pinned: {node.pin}"] if node.pin else [])]
    title = escape("\n".join(lines))
    return (
        f'<g><title>{title}</title><rect{mark} x="{x:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="3" '
        f'fill="{fill}"/><text x="{x + 6:g}" y="{y + 15:g}">{escape(label)}</text></g>'
    )
