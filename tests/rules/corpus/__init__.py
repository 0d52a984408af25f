"""The corpus, one op family a file; ``CASES`` is all of it."""

from __future__ import annotations

from tests.rules.corpus import (
    attention,
    convolution,
    cutting,
    einsum,
    indexing,
    linear,
    norms,
    pointwise,
    reductions,
    repeating,
    reshaping,
)

_FAMILIES = (
    pointwise,
    linear,
    einsum,
    attention,
    convolution,
    norms,
    reductions,
    reshaping,
    repeating,
    cutting,
    indexing,
)
CASES = tuple(case for family in _FAMILIES for case in family.CASES)
