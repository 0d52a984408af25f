"""How far each of several steps goes on the way to a ratio."""

from __future__ import annotations

from collections.abc import Callable

from fxprune.errors import OptionError
from fxprune.planning.budgets import check_ratio

__all__ = ["SHAPES", "ratio_at"]

SHAPES: dict[str, Callable[[float, float], float]] = {
    # The same share of the original each time.
    "linear": lambda ratio, done: ratio * done,
    # Much at first, when there is much that nobody misses (Zhu and Gupta 2017, arXiv 1710.01878, equation 1).
    "cubic": lambda ratio, done: ratio * (1 - (1 - done) ** 3),
    # The same share of what is left each time.
    "geometric": lambda ratio, done: 1 - (1 - ratio) ** done,
}


def ratio_at(step: int, steps: int, ratio: float, shape: str = "linear") -> float:
    """The fraction of the original budget that is gone after a step.

    Args:
        step: 0 (nothing is gone) to ``steps`` (exactly ``ratio`` is).
        steps: how many there are.
        ratio: where the last one ends, ``0 <= ratio < 1``.
        shape: "linear", "cubic" or "geometric".

    Raises:
        RatioError: the ratio is none.
        OptionError: an unknown shape, or a step that does not exist.
    """
    ratio = check_ratio(ratio)
    if shape not in SHAPES:
        raise OptionError(f"unknown shape {shape!r}: choose one of {', '.join(SHAPES)}")
    if not _is_count(steps) or steps < 1:
        raise OptionError(f"steps must be a whole number of at least 1, not {steps!r}")
    if not _is_count(step) or not 0 <= step <= steps:
        raise OptionError(f"step must be a whole number from 0 to {steps}, not {step!r}")
    if step in (0, steps):
        return ratio if step else 0.0
    return SHAPES[shape](ratio, step / steps)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
