"""What is remembered of the values at a place: sums, so that batches and ranks add up to the same thing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxprune.statistics.places import Seen

__all__ = ["Mean", "Statistic", "Sums"]

FloatArray = NDArray[np.float64]


@runtime_checkable
class Statistic(Protocol):
    """Takes in what is seen at one place, batch by batch, and keeps sums of it.

    Attributes:
        needs: "value", "gradient" (the gradient of the loss is wanted too) or "sample gradient" (sample by sample).
    """

    @property
    def needs(self) -> str:
        """What :meth:`update` reads."""
        ...

    def update(self, seen: Seen) -> None:
        """Take in one batch."""
        ...

    def sums(self) -> Iterable[Tensor]:
        """The accumulators, in a fixed order and of shapes that do not depend on the data; they add up over ranks."""
        ...


class Sums:
    """A base for statistics: named float64 accumulators of given shapes.

    Args:
        shapes: name and shape of each accumulator.
    """

    needs = "value"

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        self.held = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}

    def add(self, name: str, value: Tensor | float) -> None:
        """Add ``value`` to the accumulator of that name."""
        held = self.held[name]
        if isinstance(value, Tensor) and held.device != value.device:
            self.held[name] = held = held.to(value.device)
        held += value

    def sums(self) -> Iterable[Tensor]:
        """Every accumulator."""
        return list(self.held.values())

    def array(self, name: str) -> FloatArray:
        """An accumulator as a numpy array."""
        found: FloatArray = self.held[name].cpu().numpy()
        return found


class Mean(Sums):
    """The mean over all samples of ``measure(maps)``, one number per channel of each sample.

    Args:
        units: how many channels there are.
        measure: from maps (samples, channels, ...) to numbers (samples, channels).
    """

    def __init__(self, units: int, measure: Callable[[Tensor], Tensor]) -> None:
        super().__init__(total=(units,), samples=())
        self._measure = measure

    def update(self, seen: Seen) -> None:
        """Take in one batch."""
        self.add("total", self._measure(seen.value).sum(0, dtype=torch.float64))
        self.add("samples", float(seen.value.shape[0]))

    def result(self) -> FloatArray:
        """Shape ``(units,)``."""
        return self.array("total") / max(float(self.held["samples"]), 1.0)
