"""Scalings that make the scores of different groups comparable before one global sort."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fxprune.criteria.ordering import removal_order
from fxprune.errors import CriterionError

__all__ = ["NORMALISERS", "normaliser_by_name"]

FloatArray = NDArray[np.float64]
Normaliser = Callable[[FloatArray], FloatArray]


def _divided(scores: FloatArray, divisor: float) -> FloatArray:
    # A divisor of zero means scores that are all zero (or cancel): no scale can be read off them.
    return scores / divisor if divisor != 0 else scores.copy()


def _mean(scores: FloatArray) -> FloatArray:
    return _divided(scores, float(scores.mean()))


def _max(scores: FloatArray) -> FloatArray:
    return _divided(scores, float(scores.max()))


def _sum(scores: FloatArray) -> FloatArray:
    return _divided(scores, float(scores.sum()))


def _minmax(scores: FloatArray) -> FloatArray:
    low = scores.min()
    return _divided(scores - low, float(scores.max() - low))


def _zscore(scores: FloatArray) -> FloatArray:
    return _divided(scores - scores.mean(), float(scores.std()))


def _l2(scores: FloatArray) -> FloatArray:
    return _divided(scores, float(np.sqrt(np.square(scores).sum())))


def _variance(scores: FloatArray) -> FloatArray:
    """Centred and divided by the population variance, not its root (as feature entropies are in published code)."""
    return _divided(scores - scores.mean(), float(scores.var()))


def _lamp(scores: FloatArray) -> FloatArray:
    """``s_u^2 / sum of s_v^2 over v >= u`` in ascending order (Lee et al., 2021, arXiv 2010.07611, equation 2)."""
    order = removal_order(scores)
    energy = np.square(scores[order])
    remaining = np.cumsum(energy[::-1])[::-1]
    lamp = np.divide(energy, remaining, out=np.zeros_like(energy), where=remaining > 0)
    scaled = np.empty_like(scores)
    scaled[order] = lamp
    return scaled


NORMALISERS: dict[str, Normaliser] = {
    "none": np.copy,
    "mean": _mean,
    "max": _max,
    "sum": _sum,
    "minmax": _minmax,
    "zscore": _zscore,
    "l2": _l2,
    "variance": _variance,
    "lamp": _lamp,
}


def normaliser_by_name(name: str) -> Normaliser:
    """The normaliser of that name.

    Raises:
        CriterionError: the name is unknown.
    """
    if name not in NORMALISERS:
        raise CriterionError(f"unknown normaliser {name!r}; choose one of {', '.join(NORMALISERS)}")
    return NORMALISERS[name]
