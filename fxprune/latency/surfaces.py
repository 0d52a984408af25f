"""Latency as a function of up to three widths: measured on a grid, looked up in between."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_WIDTHS", "Surface", "SurfaceStack", "measured_surface", "stacks"]

FloatArray = NDArray[np.float64]
Widths = tuple[int, ...]

MOST_WIDTHS = 3
_SHARES = {1: (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875), 2: (0.125, 0.25, 0.5, 0.75), 3: (0.25, 0.5)}
_VECTOR, _HALF_VECTOR = 16, 8
_STEPS = (1, _HALF_VECTOR, _VECTOR)


@dataclass(frozen=True, eq=False)
class Surface:
    """Seconds at the knots of a grid.

    Attributes:
        knots: per width the ascending sizes that were measured.
        steps: per width the multiple to which the kernel rounds it up: 1, 8 or 16.
        seconds: one number for each combination of knots; it grows with each width.
    """

    knots: tuple[FloatArray, ...]
    steps: tuple[int, ...]
    seconds: FloatArray


def measured_surface(full: Widths, measure: Callable[[Widths], float]) -> Surface:
    """The surface of a kernel whose widths are at most ``full``; ``measure`` gives its seconds at some widths."""
    knots = [_knots(size, len(full)) for size in full]
    seconds = np.empty([len(k) for k in knots], dtype=np.float64)
    for place in np.ndindex(*seconds.shape):
        seconds[place] = measure(tuple(k[i] for k, i in zip(knots, place, strict=True)))
    steps = tuple(_step(full, number, measure) for number in range(len(full)))
    for number in range(len(full)):
        # What is measured must not fall as a width grows, else removing channels would look like a loss.
        seconds = np.maximum.accumulate(seconds, axis=number)
    return Surface(tuple(np.array(k, dtype=np.float64) for k in knots), steps, seconds)


def _knots(full: int, widths: int) -> list[int]:
    """Multiples of a vector's length at some shares of a width (of less, where it is narrow), and the width itself."""
    unit = _VECTOR if full >= 4 * _VECTOR else min(_HALF_VECTOR, max(1, full // _HALF_VECTOR))
    inner = {max(unit, unit * round(share * full / unit)) for share in _SHARES[widths]}
    return sorted({size for size in inner if size < full} | {full})


def _probes(full: int) -> list[int]:
    """A multiple of a vector's length, the next one, and sizes between that tell whether the kernel rounds up."""
    base = _VECTOR * (round(0.6 * full) // _VECTOR)
    if base == 0 or base + _VECTOR > full:
        return []
    return [base, base + 1, base + _HALF_VECTOR, base + _HALF_VECTOR + 1, base + _VECTOR]


def _step(full: Widths, number: int, measure: Callable[[Widths], float]) -> int:
    """The multiple that explains the probes best; the smaller one of equals."""
    sizes = _probes(full[number])
    if not sizes:
        return 1
    times = [measure(_with(full, number, size)) for size in sizes]
    low, high = times[0], times[-1]

    def misfit(step: int) -> float:
        shares = ((-(-size // step) * step - sizes[0]) / _VECTOR for size in sizes)
        return sum((low + share * (high - low) - seen) ** 2 for share, seen in zip(shares, times, strict=True))

    return min(_STEPS, key=misfit)


def _with(widths: Widths, number: int, size: int) -> Widths:
    return (*widths[:number], size, *widths[number + 1 :])


class SurfaceStack:
    """Surfaces of as many widths each, looked up together."""

    def __init__(self, surfaces: Sequence[Surface]) -> None:
        self._rank = len(surfaces[0].knots)
        most = max(len(k) for s in surfaces for k in s.knots)
        most = max(most, 2)
        self._knots = np.stack([[_padded(k, most) for k in s.knots] for s in surfaces])
        self._steps = np.array([s.steps for s in surfaces], dtype=np.float64)
        self._full = self._knots[:, :, -1]
        self._seconds = np.stack([_padded_grid(s.seconds, most) for s in surfaces])
        self._row = np.arange(len(surfaces))

    def at(self, widths: FloatArray) -> FloatArray:
        """The seconds of each surface; ``widths`` of shape (surfaces, widths of each)."""
        # The small subtrahend: what is 16 but for rounding is not 17.
        rounded = np.minimum(np.ceil(widths / self._steps - 1e-9) * self._steps, self._full)
        lower = np.clip((self._knots <= rounded[..., None]).sum(-1) - 1, 0, self._knots.shape[-1] - 2)
        left = np.take_along_axis(self._knots, lower[..., None], -1)[..., 0]
        right = np.take_along_axis(self._knots, lower[..., None] + 1, -1)[..., 0]
        gap = np.where(right > left, right - left, 1.0)
        share = np.clip((rounded - left) / gap, 0.0, 1.0)
        total = np.zeros(len(widths), dtype=np.float64)
        for corner in itertools.product((0, 1), repeat=self._rank):
            weight = np.prod([share[:, a] if up else 1 - share[:, a] for a, up in enumerate(corner)], axis=0)
            place = (self._row, *(lower[:, a] + up for a, up in enumerate(corner)))
            total += weight * self._seconds[place]
        return total


def stacks(surfaces: Iterable[Surface]) -> dict[int, list[int]]:
    """Places of surfaces by their number of widths."""
    found: dict[int, list[int]] = {}
    for place, surface in enumerate(surfaces):
        found.setdefault(len(surface.knots), []).append(place)
    return found


def _padded(knots: FloatArray, most: int) -> FloatArray:
    return np.pad(knots, (0, most - len(knots)), mode="edge")


def _padded_grid(seconds: FloatArray, most: int) -> FloatArray:
    return np.pad(seconds, [(0, most - size) for size in seconds.shape], mode="edge")
