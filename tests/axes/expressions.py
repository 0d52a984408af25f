"""Hypothesis strategies for axis expressions of a given size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from fxprune.axes.expressions import Axis, Channels, Fixed, concat, gather, product
from tests.axes.solved import channels

Draw = st.DrawFn


def divisors(number: int) -> list[int]:
    """Divisors apart from one and the number."""
    return [d for d in range(2, number) if number % d == 0]


@st.composite
def compositions(draw: Draw, total: int, most: int = 3) -> list[int]:
    """Positive numbers with the given sum."""
    cuts = draw(st.sets(st.integers(1, max(total - 1, 1)), max_size=most - 1)) if total > 1 else set()
    ends = [*sorted(c for c in cuts if c < total), total]
    return [b - a for a, b in zip([0, *ends], ends, strict=False)]


@st.composite
def factorisations(draw: Draw, total: int, most: int = 3) -> list[int]:
    """Numbers above one with the given product, in any order."""
    factors: list[int] = []
    while len(factors) < most - 1 and (choices := divisors(total)):
        if draw(st.booleans()):
            break
        factors.append(draw(st.sampled_from(choices)))
        total //= factors[-1]
    return [*factors, total]


@st.composite
def linear(draw: Draw, size: int, pool: Sequence[Channels] = (), depth: int = 2) -> Axis:
    """An axis in which each element needs one unit at most: concatenations, gathers, products with fixed sizes."""
    kinds = ["leaf", "leaf", "fixed"]
    if depth:
        kinds += ["concat"] * 3 + ["gather"] * 2 + ["product"] * bool(divisors(size)) * 2
    kind = draw(st.sampled_from(kinds))
    if kind == "concat":
        sizes = draw(compositions(size))
        return concat([draw(linear(s, pool, depth - 1)) for s in sizes])
    if kind == "gather":
        base = draw(linear(draw(st.integers(max(size - 2, 1), size + 3)), pool, depth - 1))
        picks = draw(st.lists(st.integers(0, base.size - 1), min_size=size, max_size=size))
        return gather(base, np.array(picks, dtype=np.int64))
    if kind == "product":
        inner = draw(st.sampled_from(divisors(size)))
        parts = [draw(linear(size // inner, pool, depth - 1)), Fixed(inner, "it is space")]
        return product(parts if draw(st.booleans()) else [Fixed(inner, "it is space"), parts[0]])
    return draw(leaves(size, pool, fixed=kind == "fixed"))


@st.composite
def leaves(draw: Draw, size: int, pool: Sequence[Channels], *, fixed: bool = False) -> Axis:
    """A variable, known or new, or a fixed size."""
    known = [v for v in pool if v.size == size]
    if fixed and draw(st.booleans()):
        return Fixed(size, "it is fixed")
    if known and draw(st.booleans()):
        return draw(st.sampled_from(known))
    return channels(size)


@st.composite
def expressions(draw: Draw, size: int, pool: Sequence[Channels] = (), depth: int = 2) -> Axis:
    """Any axis of ``size`` elements over variables of ``pool`` and new ones."""
    kinds = ["leaf", "leaf", "fixed"]
    if depth:
        kinds += ["concat"] * 3 + ["product"] * 4 * bool(divisors(size)) + ["gather"]
    kind = draw(st.sampled_from(kinds))
    if kind == "concat":
        sizes = draw(compositions(size))
        return concat([draw(expressions(s, pool, depth - 1)) for s in sizes])
    if kind == "product":
        sizes = draw(factorisations(size))
        return product([draw(expressions(s, pool, depth - 1)) for s in sizes])
    if kind == "gather":
        base = draw(expressions(draw(st.integers(max(size - 1, 1), size + 2)), pool, depth - 1))
        picks = draw(st.lists(st.integers(0, base.size - 1), min_size=size, max_size=size))
        return gather(base, np.array(picks, dtype=np.int64))
    return draw(leaves(size, pool, fixed=kind == "fixed"))
