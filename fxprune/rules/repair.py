"""Repair: one op rewritten for the kept channels, with maps between full and kept sizes that depend on the input."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import numpy as np
import torch
from torch import fx

from fxprune.axes.elements import Mask, kept_mask
from fxprune.axes.expressions import Axis, Channels, Concat, Fixed, Product, has_fixed, variables
from fxprune.axes.solver import Solver
from fxprune.rules.call import Call

Emit = Callable[..., Any]


@dataclass(frozen=True)
class SizeMap:
    """``(full - full_offset) / full_factor == (kept - kept_offset) / kept_factor`` at every input size."""

    full_factor: int = 1
    kept_factor: int = 1
    full_offset: int = 0
    kept_offset: int = 0

    def kept(self, full: Any, emit: Emit) -> Any:
        """The kept size, computed by emitted operations from the full one."""
        return _moved(full, self.full_offset, self.full_factor, self.kept_factor, self.kept_offset, emit)

    def full(self, kept: Any, emit: Emit) -> Any:
        """The full size, computed by emitted operations from the kept one."""
        return _moved(kept, self.kept_offset, self.kept_factor, self.full_factor, self.full_offset, emit)

    @property
    def is_linear(self) -> bool:
        """Whether there are no offsets, so that the map holds for products with other sizes, too."""
        return self.full_offset == self.kept_offset == 0


def _moved(value: Any, old_offset: int, old_factor: int, new_factor: int, new_offset: int, emit: Emit) -> Any:
    if old_factor != new_factor:
        value = emit(operator.sub, value, old_offset) if old_offset else value
        common = gcd(old_factor, new_factor)
        value = emit(operator.mul, value, new_factor // common)
        value = emit(operator.floordiv, value, old_factor // common)
        old_offset = 0
    change = new_offset - old_offset
    return emit(operator.add, value, change) if change else value


def size_map(axis: Axis, masks: Mapping[Channels, Mask]) -> SizeMap:
    """The map of an axis with input-dependent sizes: exact if possible, else the ratio at the sample's size."""
    kept = int(kept_mask(axis, masks).sum())
    return _exact(axis, masks) or SizeMap(axis.size, kept)


def _exact(axis: Axis, masks: Mapping[Channels, Mask]) -> SizeMap | None:
    mask = kept_mask(axis, masks)
    if mask.all():
        return SizeMap()
    if not isinstance(axis, (Product, Concat)):
        return None
    parts = axis.factors if isinstance(axis, Product) else axis.parts
    static = [(p.size, int(kept_mask(p, masks).sum())) for p in parts if not has_fixed(p)]
    maps = [_exact(p, masks) for p in parts if has_fixed(p)]
    found = [m for m in maps if m is not None]
    if len(found) < len(maps) or not found:
        return None
    full, kept = zip(*static, strict=True) if static else ((), ())
    if isinstance(axis, Product):
        return _product(found, prod(full), prod(kept))
    return _sum(found, sum(full), sum(kept))


def _product(maps: list[SizeMap], full: int, kept: int) -> SizeMap | None:
    if len(maps) == 1:
        (m,) = maps
        return SizeMap(full * m.full_factor, kept * m.kept_factor, full * m.full_offset, kept * m.kept_offset)
    if not all(m.is_linear for m in maps):
        return None
    return SizeMap(full * prod(m.full_factor for m in maps), kept * prod(m.kept_factor for m in maps))


def _sum(maps: list[SizeMap], full: int, kept: int) -> SizeMap | None:
    first = maps[0]
    if any(m.full_factor * first.kept_factor != m.kept_factor * first.full_factor for m in maps):
        return None
    full_offset, kept_offset = sum(m.full_offset for m in maps), sum(m.kept_offset for m in maps)
    return SizeMap(first.full_factor, first.kept_factor, full + full_offset, kept + kept_offset)


EmitOp = Callable[..., fx.Node]


class Repair:
    """One op while it is written into the smaller graph.

    ``arguments`` holds the arguments by name: nodes of the new graph, and the literals of the source. ``changes``
    collects arguments that the rule changes; ``replacement`` is a node that replaces the op. ``mapped`` maps a node of
    the old graph to its value in the new graph.
    """

    def __init__(
        self,
        call: Call,
        arguments: dict[str, Any],
        masks: Mapping[Channels, Mask],
        emit: EmitOp,
        add_constant: Callable[[torch.Tensor], fx.Node],
        mapped: Callable[[fx.Node], Any],
    ) -> None:
        self.call = call
        self.arguments = arguments
        self.changes: dict[str, Any] = {}
        self.replacement: fx.Node | None = None
        self.emit = emit
        self.add_constant = add_constant
        self.mapped = mapped
        self.full_width: Sequence[Axis] = ()
        self._masks = masks
        self._solver: Solver = call.solver

    def mask(self, axis: Axis) -> Mask:
        """The mask of the elements of an axis that stay."""
        return kept_mask(self._solver.resolve(axis), self._masks)

    def size(self, axis: Axis) -> int:
        """The number of elements of an axis that stay."""
        return axis.size if isinstance(axis, Fixed) else int(self.mask(axis).sum())

    def shrinks(self, axis: Axis) -> bool:
        """Whether any element of an axis is removed."""
        return self.size(axis) != axis.size

    def is_static(self, axis: Axis) -> bool:
        """Whether the axis consists of channels only, so that its size is the same for every input."""
        resolved = self._solver.resolve(axis)
        return not isinstance(resolved, Fixed) and bool(variables(resolved)) and not has_fixed(resolved)

    def set(self, name: str, value: Any) -> None:
        """Change an argument (for a module, the attribute that stores it)."""
        self.changes[name] = value

    def resize(self, value: Any, axis: Axis) -> Any:
        """The size argument ``value`` of an axis, set to the kept size. -1 stays, and dynamic parts stay dynamic."""
        new, old = self.size(axis), axis.size
        if new == old or (isinstance(value, int) and value == -1):
            return value
        if not isinstance(value, fx.Node) or self.is_static(axis):
            return new
        return size_map(self._solver.resolve(axis), self._masks).kept(value, self.emit)

    def resize_all(self, name: str, axes: Sequence[Axis]) -> None:
        """Repair a sequence of sizes, one for each axis, counted from the last."""
        if not any(self.shrinks(a) for a in axes):
            return
        sizes = self.arguments[name]
        if isinstance(sizes, fx.Node):
            sizes = tuple(self.emit(operator.getitem, sizes, i) for i in range(len(axes)))
        sizes = sizes if isinstance(sizes, (list, tuple)) else (sizes,)
        self.set(name, tuple(self.resize(v, a) for v, a in zip(sizes, axes, strict=True)))

    def positions(self, source: Axis, index: np.ndarray[Any, np.dtype[np.int64]], kept: Mask) -> list[int]:
        """The positions of the elements ``index[kept]`` of an axis among its kept elements."""
        rank = np.cumsum(self.mask(source)) - 1
        return [int(i) for i in rank[index[kept]]]

    def select(self, node: fx.Node, dim: int, index: Sequence[int]) -> fx.Node:
        """``node`` with literal positions selected along dim ``dim``."""
        return self.emit(torch.index_select, node, dim, self.constant(index))

    def constant(self, index: Sequence[int]) -> fx.Node:
        """Positions as a constant tensor of the new graph."""
        return self.add_constant(torch.tensor(list(index), dtype=torch.int64))

    def select_result(self, axes: Sequence[Axis]) -> None:
        """Let the op run at full width and cut its result to the kept elements."""
        self.full_width = axes

    def select_kept(self, node: fx.Node, axes: Sequence[Axis]) -> fx.Node:
        """A tensor made at full width, cut to the kept elements of every axis."""
        for dim, axis in enumerate(axes):
            if self.shrinks(axis):
                node = self.select(node, dim, np.flatnonzero(self.mask(axis)).tolist())
        return node


def contiguous(index: Sequence[int]) -> bool:
    """Whether positions follow one another without a gap."""
    return len(index) == 0 or list(index) == list(range(index[0], index[0] + len(index)))
