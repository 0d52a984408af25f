"""The one order in which units go."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["removal_order"]


def removal_order(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Units in the order in which they go: lowest score first, among equals the highest index (the lowest survives)."""
    reverse = np.argsort(scores[::-1], kind="stable")
    return (len(scores) - 1 - reverse).astype(np.int64)
