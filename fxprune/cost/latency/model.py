"""Latency as a cost: the sum of what every operation takes, looked up by the sizes of its axes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxprune.axes.elements import Mask
from fxprune.axes.expressions import Axis, Channels, Term
from fxprune.cost.latency.table import Surface, SurfaceStack, stacks
from fxprune.cost.model import CostModel

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ShapedOp:
    """An operation whose latency was measured on a grid of its widths.

    Attributes:
        owner: the layer it belongs to.
        widths: the axes that are its widths.
        surface: seconds of one call by these widths.
        calls: how often it is called in one run.
    """

    owner: str
    widths: tuple[Axis, ...]
    surface: Surface
    calls: int = 1


class LatencyModel(CostModel):
    """The seconds of one call of the network, as a function of which channels stay.

    Operations run one after another and are timed one by one, so that what they do to each other (a cache that is
    still warm, a fused pair) is not in it.
    """

    def __init__(self, linear: Iterable[Term], shaped: Iterable[ShapedOp]) -> None:
        """``linear``: seconds that grow with the product of sizes; ``shaped``: operations with a surface."""
        linear, shaped = tuple(linear), tuple(shaped)
        self._linear = len(linear)
        widths = [Term(op.owner, 1.0, (axis,)) for op in shaped for axis in op.widths]
        self._shaped_owners = tuple(op.owner for op in shaped)
        self._calls = np.array([op.calls for op in shaped], dtype=np.float64)
        self._stacks = _stacked(shaped)
        super().__init__([*linear, *widths])
        for op in shaped:
            for axis, step in zip(op.widths, op.surface.steps, strict=True):
                if isinstance(axis, Channels) and step > 1:
                    self.vectors[axis] = max(step, self.vectors.get(axis, 1))

    def evaluate(self, leaf_values: FloatArray) -> float:
        """The seconds at the given sizes of :attr:`leaves`."""
        linear, shaped = self._parts(leaf_values)
        return float(linear.sum() + shaped.sum())

    def by_owner(self, masks: Mapping[Channels, Mask]) -> dict[str, float]:
        """The seconds of each layer."""
        linear, shaped = self._parts(self._exact_leaves(masks))
        shares: dict[str, float] = {}
        pairs = [*zip(self._owners, linear.tolist(), strict=False), *zip(self._shaped_owners, shaped, strict=True)]
        for owner, value in pairs:
            shares[owner] = shares.get(owner, 0.0) + float(value)
        return shares

    def _parts(self, leaf_values: FloatArray) -> tuple[FloatArray, FloatArray]:
        values = self._terms.products(self._nodes(leaf_values))
        sizes = values[self._linear :]
        shaped = np.zeros(len(self._calls), dtype=np.float64)
        for stack, ops, columns in self._stacks:
            shaped[ops] = stack.at(sizes[columns])
        return values[: self._linear], shaped * self._calls


def _stacked(shaped: tuple[ShapedOp, ...]) -> list[tuple[SurfaceStack, list[int], NDArray[np.intp]]]:
    """Operations with equally many widths, and where among all widths theirs are."""
    starts = np.cumsum([0, *(len(op.widths) for op in shaped)])
    found = []
    for count, places in stacks(op.surface for op in shaped).items():
        columns = np.array([range(starts[p], starts[p] + count) for p in places], dtype=np.intp)
        found.append((SurfaceStack([shaped[p].surface for p in places]), places, columns))
    return found
