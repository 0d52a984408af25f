"""Axes element by element: which of them stay, which channels they need, and how two axes align."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxprune.axes.expressions import (
    Axis,
    Channels,
    Concat,
    Fixed,
    Gather,
    IndexArray,
    Product,
    concat,
    gather,
    inside,
    variables,
)

Run = tuple[list[Axis], list[Axis]]


def strides_of(factors: Sequence[Axis]) -> list[int]:
    """The stride of every factor (the product of the sizes to its right), innermost first, and then the total."""
    return [*itertools.accumulate([1, *(f.size for f in reversed(factors))], operator.mul)]


def ends_of(parts: Iterable[Axis]) -> list[int]:
    """The offset at which each part ends."""
    return [*itertools.accumulate(p.size for p in parts)]


def between(offsets: Sequence[int], start: int, stop: int) -> list[int]:
    """The sizes of the pieces between ``start`` and ``stop``, cut at sorted ``offsets`` (which contain ``stop``)."""
    inside = offsets[bisect_right(offsets, start) : bisect_right(offsets, stop)]
    return [high - low for low, high in itertools.pairwise([start, *inside])]


def runs(left: Sequence[Axis], right: Sequence[Axis], total: Callable[[Iterable[int]], int]) -> list[Run]:
    """Pairs of the shortest runs of equal size on both sides, last first; ``total``: ``prod`` or ``sum``."""
    found: list[Run] = []
    xs, ys = list(left), list(right)
    while xs or ys:
        run_x, run_y = [xs.pop()], [ys.pop()]
        size_x, size_y = run_x[0].size, run_y[0].size
        while size_x != size_y:
            if size_x < size_y:
                run_x.append(xs.pop())
                size_x = total((size_x, run_x[-1].size))
            else:
                run_y.append(ys.pop())
                size_y = total((size_y, run_y[-1].size))
        found.append((run_x[::-1], run_y[::-1]))
    return found


def regroup(pieces: Iterable[Axis], sizes: Iterable[int]) -> list[Axis]:
    """Join consecutive pieces into concatenations of the given sizes."""
    supply = iter(pieces)
    groups: list[Axis] = []
    for size in sizes:
        taken: list[Axis] = []
        while size > 0:
            taken.append(next(supply))
            size -= taken[-1].size
        groups.append(concat(taken))
    return groups


Mask = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
Leaf = Channels | Fixed


@dataclass(frozen=True)
class Labels:
    """``of[v][i]`` is the channel of element ``i`` of variable ``v``; channel number ``free`` is the fixed one."""

    of: dict[Channels, IndexArray]
    free: int


def is_elementwise(axis: Axis) -> bool:
    """Whether each element needs at most one channel: no product of two factors that may both shrink."""
    if isinstance(axis, Product):
        shrinking = [f for f in axis.factors if not isinstance(f, Fixed)]
        return len(shrinking) <= 1 and all(is_elementwise(f) for f in shrinking)
    return all(map(is_elementwise, inside(axis)))


def has_gather(axis: Axis) -> bool:
    """Whether elements are picked by an index anywhere in the expression."""
    return type(axis) not in (Fixed, Channels) and (isinstance(axis, Gather) or any(map(has_gather, inside(axis))))


def as_gather(axis: Product) -> Axis | None:
    """A product of one shrinking factor and fixed ones as a gather of that factor, else None."""
    shrinking = [i for i, f in enumerate(axis.factors) if not isinstance(f, Fixed)]
    if len(shrinking) != 1:
        return None
    at = shrinking[0]
    outer, inner = (math.prod(f.size for f in fs) for fs in (axis.factors[:at], axis.factors[at + 1 :]))
    base = axis.factors[at]
    return gather(base, np.tile(np.repeat(np.arange(base.size, dtype=np.int64), inner), outer))


def couple_elements(a: Axis, b: Axis) -> Labels:
    """Tie element i of ``a`` to element i of ``b``. Elements tied to a fixed one all get the last channel number."""
    offsets: dict[Channels, int] = {}
    total = 1  # node 0 stands for every fixed element
    for variable in (*variables(a), *variables(b)):
        if variable not in offsets:
            offsets[variable] = total
            total += variable.size
    channel, count = _connected(_element_numbers(a, offsets), _element_numbers(b, offsets), total)
    # Node 0 is the lowest, so its component is channel 0: make it the last one.
    channel = (channel - 1) % count
    return Labels({v: channel[o : o + v.size] for v, o in offsets.items()}, count - 1)


def _element_numbers(axis: Axis, offsets: Mapping[Channels, int]) -> IndexArray:
    """Node number of every element of an elementwise axis; 0 for a fixed one."""

    def numbers(leaf: Leaf) -> IndexArray:
        start, step = (offsets[leaf], 1) if isinstance(leaf, Channels) else (0, 0)
        return start + step * np.arange(leaf.size, dtype=np.int64)

    return _by_element(axis, numbers, np.maximum.outer)


def _connected(left: IndexArray, right: IndexArray, total: int) -> tuple[IndexArray, int]:
    """Connected components of ``total`` nodes under edges left[i] - right[i], numbered by their lowest node."""
    label = np.arange(total, dtype=np.int64)
    while True:
        before = label.copy()
        low = np.minimum(label[left], label[right])
        np.minimum.at(label, label[left], low)
        np.minimum.at(label, label[right], low)
        np.minimum.at(label, left, low)
        np.minimum.at(label, right, low)
        label = label[label]
        if bool((label == before).all()):
            break
    _, channel = np.unique(label, return_inverse=True)
    return channel.astype(np.int64), int(channel.max()) + 1


def _by_element(axis: Axis, of_leaf: Callable[[Leaf], NDArray[Any]], combine: Callable[..., Any]) -> NDArray[Any]:
    """A value for each element: ``of_leaf`` gives those of variables and fixed sizes, ``combine`` those of products."""
    if isinstance(axis, (Channels, Fixed)):
        return of_leaf(axis)
    values = [_by_element(part, of_leaf, combine) for part in inside(axis)]
    if isinstance(axis, Gather):
        return values[0][axis.index]
    if isinstance(axis, Concat):
        return np.concatenate(values)
    return functools.reduce(lambda outer, inner: np.reshape(combine(outer, inner), -1), values)


def kept_mask(axis: Axis, masks: Mapping[Channels, Mask]) -> Mask:
    """Which elements of a resolved axis stay. ``masks`` say which channels of a variable stay (without a mask: all)."""

    def stays(leaf: Leaf) -> Mask:
        return masks[leaf] if isinstance(leaf, Channels) and leaf in masks else np.ones(leaf.size, dtype=np.bool_)

    return _by_element(axis, stays, np.logical_and.outer)


def channels_of(axis: Axis, variable: Channels) -> IndexArray:
    """The channel of ``variable`` that each element of a resolved axis needs: the highest of several, -1 for none."""

    def channels(leaf: Leaf) -> IndexArray:
        return np.arange(leaf.size, dtype=np.int64) if leaf is variable else np.full(leaf.size, -1, dtype=np.int64)

    return _by_element(axis, channels, np.maximum.outer)


units_of = channels_of  # an earlier name, kept for criteria in other packages


def owned_by(axis: Axis, variable: Channels) -> tuple[IndexArray, IndexArray]:
    """The elements that go with each channel of ``variable``, as sorted pairs of a channel and an element.

    Returns:
        The channels and the elements, two arrays of one length. An element that needs two channels is in two pairs.
    """
    needs = _needs(axis, variable)
    rows, elements = np.nonzero(needs >= 0)
    pairs = np.unique(needs[rows, elements] * axis.size + elements)
    return pairs // axis.size, pairs % axis.size


def _needs(axis: Axis, variable: Channels) -> IndexArray:
    """The channels that each element needs, a row for each time that ``variable`` occurs in a product; -1 for none."""
    if isinstance(axis, Product):
        needs = np.full((1, 1), -1, dtype=np.int64)
        for factor in axis.factors:
            inner = _needs(factor, variable)
            before = np.repeat(needs, inner.shape[1], axis=1)
            needs = np.concatenate([before, np.tile(inner, (1, needs.shape[1]))])
            needs = needs[(needs >= 0).any(axis=1)] if (needs >= 0).any() else needs[:1]
        return needs
    if isinstance(axis, Concat):
        parts = [_needs(part, variable) for part in axis.parts]
        most = max(len(part) for part in parts)
        filled = [np.pad(part, ((0, most - len(part)), (0, 0)), constant_values=-1) for part in parts]
        return np.concatenate(filled, axis=1)
    return _needs(axis.base, variable)[:, axis.index] if isinstance(axis, Gather) else channels_of(axis, variable)[None]


def kept_size(axis: Axis, widths: Mapping[Channels, float]) -> float:
    """How many elements stay at ``widths`` (absent: all). For a gather, the mean over all choices of channels."""
    if isinstance(axis, Channels):
        return widths.get(axis, axis.size)
    if isinstance(axis, Fixed):
        return axis.size
    if isinstance(axis, Concat):
        return sum(kept_size(p, widths) for p in axis.parts)
    if isinstance(axis, Gather):
        return axis.size * kept_size(axis.base, widths) / axis.base.size
    size = 1.0
    for factor in axis.factors:
        size *= kept_size(factor, widths)
    return size
