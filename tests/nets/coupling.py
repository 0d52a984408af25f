"""The element-level ledger: which single channel elements must live and die together.

Every index of every dim of every tensor is a *cell*, true while that index is kept. An operator writes down what must
hold between cells, in one of three forms:

- ``tie``: two cells are equal (an addition, the output row of a weight and the channel it makes);
- ``product``: a flattened dim and its factors, ``flat[i * m + j] == outer[i] and inner[j]``, because a tensor stays
  rectangular (heads and head dim, groups and group width, channels and positions after a flatten);
- ``fix``: a cell that is always kept (inputs, outputs, batch, resolution, a dim of size 1, which would become empty).

Cells are plain integers in a plain union-find. It is slow and obvious on purpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product as cartesian

Axis = tuple[int, ...]
Axes = tuple[Axis, ...]
Slot = tuple[str, int]
Conjunction = tuple[int, tuple[int, ...]]

ALIVE = 0


class Coupling:
    """Cells of one network: axes of its values and parameters, and the relations between them."""

    def __init__(self) -> None:
        self._parent = [ALIVE]
        self.values: dict[str, Axes] = {}
        self.parameters: dict[str, Axes] = {}
        self.pieces: dict[str, Axes] = {}
        self._conjunctions: list[Conjunction] = []

    def new(self, size: int) -> Axis:
        """Return an axis of ``size`` cells of its own; a single one can never go, so it is fixed."""
        return (ALIVE,) if size == 1 else self.cells(size)

    def cells(self, size: int) -> Axis:
        """Return ``size`` new cells that are no whole dim, so that a single one may go."""
        start = len(self._parent)
        self._parent.extend(range(start, start + size))
        return tuple(range(start, start + size))

    @staticmethod
    def fixed(size: int) -> Axis:
        """Return an axis whose every cell is always kept."""
        return (ALIVE,) * size

    def root(self, cell: int) -> int:
        """Return the representative of a cell; ``ALIVE`` represents its own class."""
        while self._parent[cell] != cell:
            self._parent[cell] = self._parent[self._parent[cell]]
            cell = self._parent[cell]
        return cell

    def tie(self, left: Sequence[int], right: Sequence[int]) -> None:
        """State that two axes of one length are kept and removed index by index together."""
        if len(left) != len(right):
            raise ValueError(f"cannot tie axes of sizes {len(left)} and {len(right)}")
        for a, b in zip(left, right, strict=True):
            low, high = sorted((self.root(a), self.root(b)))
            self._parent[high] = low

    def fix(self, axis: Sequence[int]) -> None:
        """State that every index of an axis is always kept."""
        self.tie(axis, self.fixed(len(axis)))

    def product(self, flat: Axis, factors: Sequence[Axis]) -> None:
        """State that ``flat`` is the row-major flattening of ``factors``."""
        combinations = list(cartesian(*factors))
        if len(combinations) != len(flat):
            raise ValueError(f"an axis of size {len(flat)} is no product of {[len(factor) for factor in factors]}")
        for cell, parts in zip(flat, combinations, strict=True):
            self._state_conjunction(cell, parts)

    def _state_conjunction(self, cell: int, parts: tuple[int, ...]) -> None:
        removable = tuple(part for part in parts if part != ALIVE)
        if len(removable) > 1:
            self._conjunctions.append((cell, removable))
        else:
            self.tie((cell,), removable or (ALIVE,))

    def flattened(self, factors: Sequence[Axis]) -> Axis:
        """Return a new axis that is the row-major flattening of ``factors``."""
        size = 1
        for factor in factors:
            size *= len(factor)
        flat = self.new(size)
        self.product(flat, factors)
        return flat

    def define(self, name: str, axes: Axes) -> Axes:
        """Name the axes of a value; every dim of it has to keep at least one index."""
        if name in self.values:
            raise ValueError(f"value {name!r} is defined twice")
        self.values[name] = axes
        return axes

    def parameter(self, name: str, axes: Axes) -> Axes:
        """Name the axes of a parameter or buffer; a second use of the name (a shared module) ties both uses."""
        known = self.parameters.setdefault(name, axes)
        for left, right in zip(known, axes, strict=True):
            self.tie(left, right)
        return known

    def note(self, name: str, axis: Axis) -> Axis:
        """Name a dim that no tensor carries by itself, such as the groups of a convolution; a second use ties both."""
        self.values.setdefault(name, (axis,))
        self.tie(self.values[name][0], axis)
        return axis

    def piece(self, name: str, axis: Axis) -> Axis:
        """Name a part of a dim that may become empty: the zeros of a pad, what a slice leaves out."""
        self.pieces[name] = (axis,)
        return axis

    def conjunctions(self) -> set[Conjunction]:
        """Return every product relation over representatives: ``(flat, factors)``."""
        return {
            (self.root(cell), tuple(sorted({self.root(part) for part in parts}))) for cell, parts in self._conjunctions
        }

    def slots(self) -> dict[Slot, Axis]:
        """Return every named dim and piece as representatives of its cells."""
        named = {**self.values, **self.parameters, **self.pieces}
        return {
            (name, dim): tuple(self.root(cell) for cell in axis)
            for name, axes in named.items()
            for dim, axis in enumerate(axes)
        }

    def sizes(self, name: str) -> tuple[int, ...]:
        """Return the shape of a value for a batch of one."""
        return tuple(len(axis) for axis in self.values[name])
