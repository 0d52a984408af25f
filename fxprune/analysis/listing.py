"""The network in words: one line a node, with the axes of its result, their groups, and the line of its source.

A group is a letter, and ``a:16`` is an axis that its 16 channels make; with a plan, ``a:16->12`` says how many stay.
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

import itertools
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import fx

from fxprune.axes.elements import Mask, kept_mask
from fxprune.axes.expressions import Axis, Channels, Concat, Gather, Product
from fxprune.axes.solver import Solver
from fxprune.capture import Captured
from fxprune.capture.decisions import is_check
from fxprune.rules.ops import canonical_name

if TYPE_CHECKING:
    from fxprune.analysis.solving import ChannelGraph

Masks = Mapping[Channels, Mask]
_WIDEST_CALL = 56
_WIDEST_AXES = 48


def network_text(graph: ChannelGraph, masks: Masks | None = None) -> str:
    """Every node of every captured graph, and what the letters stand for; widths as ``old->new`` with ``masks``."""
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
