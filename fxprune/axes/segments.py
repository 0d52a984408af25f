"""Runs of factors and parts that cover the same elements."""

from __future__ import annotations

import itertools
import math
import operator
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence

from fxprune.axes.expressions import Axis, concat

Run = tuple[list[Axis], list[Axis]]


def strides_of(factors: Sequence[Axis]) -> list[int]:
    """The stride of every factor, that is the product of the sizes to its right, and the total."""
    return [*itertools.accumulate([1, *(f.size for f in reversed(factors))], operator.mul)]


def ends_of(parts: Iterable[Axis]) -> list[int]:
    """The offset at which each part ends."""
    return [*itertools.accumulate(p.size for p in parts)]


def between(offsets: Sequence[int], start: int, stop: int) -> list[int]:
    """The sizes of the pieces into which sorted ``offsets``, ``stop`` among them, cut the range from start to stop."""
    inside = offsets[bisect_right(offsets, start) : bisect_right(offsets, stop)]
    return [high - low for low, high in itertools.pairwise([start, *inside])]


def runs_of_factors(left: Sequence[Axis], right: Sequence[Axis]) -> list[Run]:
    """The shortest runs of factors of both sides with equal products, innermost first."""
    return _runs(left, right, math.prod)


def runs_of_parts(left: Sequence[Axis], right: Sequence[Axis]) -> list[Run]:
    """The shortest runs of parts of both sides with equal sums, last first."""
    return _runs(left, right, sum)


def _runs(left: Sequence[Axis], right: Sequence[Axis], total: Callable[[Iterable[int]], int]) -> list[Run]:
    runs: list[Run] = []
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
        runs.append((run_x[::-1], run_y[::-1]))
    return runs


def regroup(pieces: Iterable[Axis], sizes: Iterable[int]) -> list[Axis]:
    """Pieces collected to concatenations of the given sizes."""
    supply = iter(pieces)
    groups: list[Axis] = []
    for size in sizes:
        taken: list[Axis] = []
        while size > 0:
            taken.append(next(supply))
            size -= taken[-1].size
        groups.append(concat(taken))
    return groups
