"""The corpus, one op family a file; ``CASES`` is all of it."""

from __future__ import annotations

from tests.rules.corpus import attention, convolution, einsum, linear, norms, pointwise, reductions

CASES = (
    *pointwise.CASES,
    *linear.CASES,
    *einsum.CASES,
    *attention.CASES,
    *convolution.CASES,
    *norms.CASES,
    *reductions.CASES,
)
