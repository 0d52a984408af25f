"""Axis expressions: what one dim of one tensor is made of.

    Axis := Channels(n)               n channels that may be removed one by one; a union-find variable
          | Fixed(n)                  a size that may not change: batch, space, the network's own inputs
          | Product(a1, ..., ak)      row-major flattening: C*H*W after a flatten, heads*head_dim
          | Concat(a1, ..., ak)       pieces laid end to end
          | Gather(a, index)          elements of ``a`` picked by an integer array: stride, flip, coupled elements

Expressions are immutable, except that the solver changes each ``Channels`` variable at most once: it merges it with
another variable, or binds it to an equal expression. In print, a variable is its tensor and size, a product stands in
round brackets, a concatenation in square brackets, and a gather starts with a tilde.

A feature map of 8 channels and 4 x 4 pixels, flattened, has rows of 128 elements. Channel ``c`` makes elements ``16 c``
to ``16 c + 15`` of them:

>>> import numpy as np
>>> from fxprune.axes.elements import kept_mask, channels_of
>>> conv = Channels(8, Origin("conv", 0))
>>> flat = product([conv, Fixed(4), Fixed(4)])
>>> flat, flat.size
((conv:8*16), 128)
>>> channels_of(flat, conv)[14:18]
array([0, 0, 1, 1])

Two maps end to end, of which one loses its first channel:

>>> other = Channels(3, Origin("other", 0))
>>> both = concat([conv, other])
>>> both
[conv:8 other:3]
>>> int(kept_mask(both, {other: np.array([False, True, True])}).sum())
10

Every other element of one of them:

>>> gather(conv, np.arange(0, 8, 2))
~4{conv:8}
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IndexArray = NDArray[np.int64]
PART = -1
_serial = itertools.count()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a variable was created: a tensor's name and dim; the dim is ``PART`` for a part of a variable."""

    tensor: str
    dim: int

    def __str__(self) -> str:
        return f"a part at {self.tensor}" if self.dim == PART else f"{self.tensor} dim {self.dim}"


class Channels:
    """A variable of ``size`` channels. ``parent`` and ``binding`` belong to the solver."""

    __slots__ = ("binding", "origin", "parent", "serial", "size")

    def __init__(self, size: int, origin: Origin) -> None:
        self.size = size
        self.origin = origin
        self.serial = next(_serial)
        self.parent: Channels | None = None
        self.binding: Axis | None = None

    def __repr__(self) -> str:
        return f"{self.origin.tensor}:{self.size}"


@dataclass(frozen=True, slots=True)
class Fixed:
    """A size that stays. ``why`` becomes the pin reason of any variable that is unified with it."""

    size: int
    why: str = "its size is fixed"

    def __repr__(self) -> str:
        return str(self.size)


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """Row-major flattening of its factors, outermost first. Build it with :func:`product`."""

    factors: tuple[Axis, ...]
    size: int

    def __repr__(self) -> str:
        return f"({'*'.join(map(repr, self.factors))})"


@dataclass(frozen=True, slots=True, eq=False)
class Concat:
    """Its parts laid end to end. Build it with :func:`concat`."""

    parts: tuple[Axis, ...]
    size: int

    def __repr__(self) -> str:
        return f"[{' '.join(map(repr, self.parts))}]"


@dataclass(frozen=True, slots=True, eq=False)
class Gather:
    """Element ``i`` is element ``index[i]`` of ``base``. Build it with :func:`gather`."""

    base: Axis
    index: IndexArray

    @property
    def size(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f"~{self.size}{{{self.base!r}}}"


Axis = Channels | Fixed | Product | Concat | Gather
ONE = Fixed(1)


def product(factors: Iterable[Axis]) -> Axis:
    """The row-major product. Flattens nested products, drops sizes of one and merges neighbouring fixed sizes."""
    opened = (part for f in factors for part in (f.factors if isinstance(f, Product) else (f,)))
    flat = _merged((part for part in opened if part.size != 1 or not isinstance(part, Fixed)), operator.mul)
    return (*flat, ONE)[0] if len(flat) <= 1 else Product(tuple(flat), math.prod(f.size for f in flat))


def concat(parts: Iterable[Axis]) -> Axis:
    """The parts end to end. Flattens nested concatenations, drops empty parts and merges neighbouring fixed parts."""
    opened = (part for given in parts for part in (given.parts if isinstance(given, Concat) else (given,)))
    flat = _merged((part for part in opened if part.size), operator.add)
    return (*flat, Fixed(0))[0] if len(flat) <= 1 else Concat(tuple(flat), sum(p.size for p in flat))


def _merged(parts: Iterable[Axis], sizes: Callable[[int, int], int]) -> list[Axis]:
    """The parts, with each run of neighbouring fixed parts merged into one."""
    flat: list[Axis] = []
    for part in parts:
        if flat and isinstance(part, Fixed) and isinstance(last := flat[-1], Fixed):
            flat[-1] = Fixed(sizes(last.size, part.size), last.why)
        else:
            flat.append(part)
    return flat


def gather(base: Axis, index: IndexArray) -> Axis:
    """The elements ``index`` of ``base``. The identity gives ``base`` itself; nested gathers become one."""
    if isinstance(base, Fixed):
        return Fixed(len(index), base.why)
    if isinstance(base, Gather):
        return gather(base.base, base.index[index])
    if len(index) == base.size and bool((index == np.arange(base.size)).all()):
        return base
    return Gather(base, index)


def factors_of(axis: Axis) -> tuple[Axis, ...]:
    """The factors of a product, else the axis alone (none for a size of one)."""
    if isinstance(axis, Product):
        return axis.factors
    return () if axis.size == 1 else (axis,)


def parts_of(axis: Axis) -> tuple[Axis, ...]:
    """The parts of a concatenation, else the axis alone."""
    return axis.parts if isinstance(axis, Concat) else (axis,)


def inside(axis: Axis) -> tuple[Axis, ...]:
    """The direct subexpressions of an axis, in order."""
    if isinstance(axis, Product):
        return axis.factors
    return axis.parts if isinstance(axis, Concat) else (axis.base,) if isinstance(axis, Gather) else ()


def variables(axis: Axis) -> Sequence[Channels]:
    """Every variable written in the expression, in order, repeats included."""
    if isinstance(axis, Channels):
        return (axis,)
    return () if isinstance(axis, Fixed) else [variable for part in inside(axis) for variable in variables(part)]


def has_fixed(axis: Axis) -> bool:
    """Whether any part of an axis is a size that stays."""
    return isinstance(axis, Fixed) or any(map(has_fixed, inside(axis)))


@dataclass(frozen=True, slots=True)
class Term:
    """``coefficient`` times the product of the kept sizes of ``axes``: the MACs or the elements of ``owner``."""

    owner: str
    coefficient: float
    axes: tuple[Axis, ...]


def resolved(axis: Axis) -> Axis:
    """The axis in normal form, with every variable replaced by its representative or its binding."""
    if isinstance(axis, Fixed):  # most axes are
        return axis
    if isinstance(axis, Channels):
        root = axis if axis.parent is None else _representative(axis)
        if root.binding is not None:
            root.binding = resolved(root.binding)
        return root.binding or root
    if isinstance(axis, Product):
        factors = [resolved(f) for f in axis.factors]
        return axis if _same(factors, axis.factors) else product(factors)
    if isinstance(axis, Concat):
        parts = [resolved(p) for p in axis.parts]
        return axis if _same(parts, axis.parts) else concat(parts)
    base = resolved(axis.base)
    return axis if base is axis.base else gather(base, axis.index)


def _representative(variable: Channels) -> Channels:
    root = variable
    while root.parent is not None:
        root = root.parent
    while variable.parent is not None and variable.parent is not root:
        variable.parent, variable = root, variable.parent
    return root


def _same(new: list[Axis], old: tuple[Axis, ...]) -> bool:
    return all(n is o for n, o in zip(new, old, strict=True))


@dataclass(frozen=True, slots=True)
class Cause:
    """Why axes are tied or pinned: the name of the graph node, the op in words, and the source line if it is known."""

    node: str
    op: str
    source: str = ""

    def __str__(self) -> str:
        return f"{self.op} ({self.source})" if self.source else self.op


@dataclass(frozen=True, slots=True)
class Dependency:
    """``left`` and ``right`` are the same channels, because of ``cause``."""

    left: Axis
    right: Axis
    cause: Cause


@dataclass(frozen=True, slots=True)
class Pin:
    """``axis`` keeps its size, because of ``reason`` at ``cause``."""

    axis: Axis
    reason: str
    cause: Cause
