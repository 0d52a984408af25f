"""Units that must stay so that no dim of any tensor becomes empty.

A group keeps a unit by itself, but an axis that gathers only some of its units (one half of a shuffled width) could
still lose all of its elements while the group lives on elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from fxprune.axes.elements import Mask, is_elementwise, units_of
from fxprune.axes.expressions import Axis, Channels, Concat, Fixed, Gather, Product, variables

__all__ = ["protected_units"]

FloatArray = NDArray[np.float64]


def protected_units(axes: Iterable[Axis], scores: Mapping[Channels, FloatArray]) -> dict[Channels, Mask]:
    """For every variable with scores a mask of units to keep: with them, each axis has an element that stays.

    In each axis at risk the element whose weakest unit scores highest is kept (the first among equals), unless one is
    safe already. Variables without scores are never cut.
    """
    protected = {variable: np.zeros(variable.size, dtype=np.bool_) for variable in scores}
    seen: set[int] = set()
    for axis in axes:
        for risky in _at_risk(axis):
            if id(risky) not in seen:
                seen.add(id(risky))
                _protect_one(risky, scores, protected)
    return protected


def _at_risk(axis: Axis) -> Iterator[Axis]:
    """The parts of the axis that may become empty, and empty it with them."""
    if isinstance(axis, Product):
        for factor in axis.factors:
            yield from _at_risk(factor)
    elif not _never_empty(axis):
        yield axis


def _never_empty(axis: Axis) -> bool:
    if isinstance(axis, (Channels, Fixed)):
        return True
    if isinstance(axis, Product):
        return all(_never_empty(factor) for factor in axis.factors)
    if isinstance(axis, Concat):
        return any(_never_empty(part) for part in axis.parts)
    return _gathers_a_whole(axis)


def _gathers_a_whole(axis: Gather) -> bool:
    """Whether the gather holds every unit of some variable, one of which always stays."""
    if not is_elementwise(axis.base):
        return False
    units = ((v, units_of(axis, v)) for v in dict.fromkeys(variables(axis)))
    return any(len(np.unique(u[u >= 0])) == v.size for v, u in units)


def _protect_one(axis: Axis, scores: Mapping[Channels, FloatArray], protected: dict[Channels, Mask]) -> None:
    cut = [v for v in dict.fromkeys(variables(axis)) if v in scores]
    units = {v: units_of(axis, v) for v in cut}
    safe = np.ones(axis.size, dtype=np.bool_)
    weakest = np.full(axis.size, np.inf)
    for variable, unit in units.items():
        needed = unit >= 0
        safe[needed] &= protected[variable][unit[needed]]
        weakest[needed] = np.minimum(weakest[needed], scores[variable][unit[needed]])
    if safe.any():
        return
    chosen = int(weakest.argmax())
    for variable, unit in units.items():
        if unit[chosen] >= 0:
            protected[variable][unit[chosen]] = True
