"""The corpus, one op family a file; ``CASES`` is all of it."""

from __future__ import annotations

from tests.rules.corpus import (
    attention,
    constants,
    convolution,
    corners,
    cutting,
    einsum,
    indexing,
    linear,
    linked,
    norms,
    pinned,
    pointwise,
    reductions,
    reparametrised,
    repeating,
    reshaping,
    sequences,
    vision,
    windows,
    writing,
)

_FAMILIES = (
    attention,
    constants,
    convolution,
    corners,
    cutting,
    einsum,
    indexing,
    linear,
    linked,
    norms,
    pinned,
    pointwise,
    reductions,
    reparametrised,
    repeating,
    reshaping,
    sequences,
    vision,
    windows,
    writing,
)
CASES = tuple(case for family in _FAMILIES for case in family.CASES)
