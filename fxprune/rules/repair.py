"""What a rule's repair half works with: the kept sizes of axes and the arguments of the op being written."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from fxprune.axes.elements import Mask, kept_mask
from fxprune.axes.expressions import Axis, Channels, Fixed, has_fixed, variables
from fxprune.axes.solver import Solver
from fxprune.rules.call import Call
from fxprune.rules.sizes import size_map

EmitOp = Callable[..., fx.Node]


class Repair:
    """One op being written into the smaller graph.

    ``arguments`` holds the new arguments by name: nodes of the new graph, and literals as the source had them.
    ``changes`` collects what the rule wants different, ``attributes`` module attributes to set; ``replacement`` is a
    node that stands for the op instead. ``mapped`` gives a node of the old graph as the new graph has it.
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
        self.attributes: dict[str, Any] = {}
        self.replacement: fx.Node | None = None
        self.emit = emit
        self.add_constant = add_constant
        self.mapped = mapped
        self.full_width: Sequence[Axis] = ()
        self._masks = masks
        self._solver: Solver = call.solver

    # -- axes -----------------------------------------------------------------------------------------------------

    def mask(self, axis: Axis) -> Mask:
        """Which elements of an axis stay."""
        return kept_mask(self._solver.resolve(axis), self._masks)

    def size(self, axis: Axis) -> int:
        """How many elements of an axis stay."""
        return axis.size if isinstance(axis, Fixed) else int(self.mask(axis).sum())

    def shrinks(self, axis: Axis) -> bool:
        """Whether any element of an axis goes."""
        return self.size(axis) != axis.size

    def is_static(self, axis: Axis) -> bool:
        """Whether the axis consists of channels only, so that its size is the same for every input."""
        resolved = self._solver.resolve(axis)
        return not isinstance(resolved, Fixed) and sum(1 for _ in variables(resolved)) > 0 and not has_fixed(resolved)

    # -- arguments ------------------------------------------------------------------------------------------------

    def set(self, name: str, value: Any) -> None:
        """Change an argument (of a module: the attribute that repeats it)."""
        self.changes[name] = value

    def resize(self, value: Any, axis: Axis) -> Any:
        """The size argument ``value`` of an axis, for the kept size. -1 stays, and dynamic parts stay dynamic."""
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

    # -- selections -------------------------------------------------------------------------------------------------

    def positions(self, source: Axis, index: np.ndarray[Any, np.dtype[np.int64]], kept: Mask) -> list[int]:
        """Where the kept picks ``index[kept]`` of an axis lie among its kept elements."""
        rank = np.cumsum(self.mask(source)) - 1
        return [int(i) for i in rank[index[kept]]]

    def select(self, node: fx.Node, dim: int, index: Sequence[int]) -> fx.Node:
        """``node`` with dim ``dim`` picked by literal positions."""
        return self.emit(torch.index_select, node, dim, self.constant(index))

    def constant(self, index: Sequence[int]) -> fx.Node:
        """Positions as a tensor that lives in the new graph."""
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
