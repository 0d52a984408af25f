"""Latency as a function of up to three widths: measured on a grid and interpolated."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fxprune.axes.elements import FloatArray, Mask
from fxprune.axes.expressions import Axis, Channels, Term
from fxprune.cost.budgets import CostModel
from fxprune.util.writing import write_text

Widths = tuple[int, ...]

MOST_WIDTHS = 3
_SHARES = {1: (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875), 2: (0.125, 0.25, 0.5, 0.75), 3: (0.25, 0.5)}
_VECTOR, _HALF_VECTOR = 16, 8
_STEPS = (1, _HALF_VECTOR, _VECTOR)


@dataclass(frozen=True, eq=False)
class Surface:
    """Seconds at the knots of a grid: one number for each combination of knots; they never fall as a width grows.

    ``knots``: for each width, the measured sizes, ascending; ``steps``: the multiple to which the kernel rounds it up.
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
        # Seconds must not fall as a width grows: then removing channels would seem to cost time.
        seconds = np.maximum.accumulate(seconds, axis=number)
    return Surface(tuple(np.array(k, dtype=np.float64) for k in knots), steps, seconds)


def _knots(full: int, widths: int) -> list[int]:
    """Multiples of a vector's length at some shares of a width (of shorter vectors if it is small), and the width."""
    unit = _VECTOR if full >= 4 * _VECTOR else min(_HALF_VECTOR, max(1, full // _HALF_VECTOR))
    inner = {max(unit, unit * round(share * full / unit)) for share in _SHARES[widths]}
    return sorted({size for size in inner if size < full} | {full})


def _probes(full: int) -> list[int]:
    """A multiple of a vector's length, the next one, and sizes between that show whether the kernel rounds up."""
    base = _VECTOR * (round(0.6 * full) // _VECTOR)
    if base == 0 or base + _VECTOR > full:
        return []
    return [base, base + 1, base + _HALF_VECTOR, base + _HALF_VECTOR + 1, base + _VECTOR]


def _step(full: Widths, number: int, measure: Callable[[Widths], float]) -> int:
    """The multiple that explains the probes best; the smaller of equally good ones."""
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
    """Surfaces with the same number of widths, looked up together."""

    def __init__(self, surfaces: Sequence[Surface]) -> None:
        self._rank = len(surfaces[0].knots)
        most = max(2, *(len(k) for s in surfaces for k in s.knots))
        self._knots = np.stack([[_padded(k, most) for k in s.knots] for s in surfaces])
        self._steps = np.array([s.steps for s in surfaces], dtype=np.float64)
        self._full = self._knots[:, :, -1]
        self._seconds = np.stack([_padded(s.seconds, most) for s in surfaces])
        self._row = np.arange(len(surfaces))

    def at(self, widths: FloatArray) -> FloatArray:
        """The seconds of each surface; ``widths`` of shape (surfaces, widths of each)."""
        # The small number keeps rounding errors from pushing a quotient up to the next integer.
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


def _padded(grid: FloatArray, most: int) -> FloatArray:
    return np.pad(grid, [(0, most - size) for size in grid.shape], mode="edge")


CACHE_VARIABLE = "FXPRUNE_CACHE"
_FEWEST_CALLS, _LEAST_SECONDS = 3, 0.008
_FORMAT = 1
# No call takes so many seconds: a file that says so is damaged.
_LONGEST = 1e6
Call = Callable[[], object]
Timer = Callable[[Call], float]


class LatencyTable:
    """Seconds of calls (as ``timer`` gives them) under one set of conditions: versions, processor, threads, engine.

    ``folder``: the folder of its file; None keeps the table in memory only.
    """

    def __init__(self, conditions: Mapping[str, str], folder: Path | None, timer: Timer) -> None:
        self.conditions = dict(conditions)
        self._timer = timer
        text = json.dumps(self.conditions, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._path = None if folder is None else folder / f"latency-{digest}.json"
        self._seconds = self._read()
        self._new = False

    @classmethod
    def of_this_machine(cls, device: torch.device) -> LatencyTable:
        """The table of this processor, its threads and this torch, in the user's cache directory."""
        return cls(conditions(device), cache_directory(), functools.partial(time_call, device=device))

    def known(self, key: str) -> float | None:
        """The seconds of a call that was timed before, else None."""
        return self._seconds.get(key)

    def note(self, key: str, seconds: float) -> None:
        """Store the seconds of a call that was timed elsewhere."""
        self._seconds[key] = seconds
        self._new = True

    def seconds(self, key: str, prepare: Callable[[], Call]) -> float:
        """The seconds of a call, timed if it is not known yet. Raises whatever the call raises."""
        if key not in self._seconds:
            self.note(key, self._timer(prepare()))
        return self._seconds[key]

    def time(self, call: Call) -> float:
        """Time a call now, without storing the result."""
        return self._timer(call)

    def save(self) -> None:
        """Write new entries; entries of other processes stay. If the disk refuses, only the cache is lost."""
        if self._path is None or not self._new:
            return
        self._seconds = {**self._read(), **self._seconds}
        data = {"format": _FORMAT, "conditions": self.conditions, "seconds": dict(sorted(self._seconds.items()))}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._path, json.dumps(data, indent=0) + "\n")
        except OSError:
            return
        self._new = False

    def _read(self) -> dict[str, float]:
        try:
            data = json.loads(self._path.read_text(encoding="utf-8")) if self._path is not None else {}
            if data.get("format") != _FORMAT or data.get("conditions") != self.conditions:
                return {}
            read = {str(key): float(value) for key, value in data["seconds"].items()}
            return {key: value for key, value in read.items() if 0 <= value < _LONGEST}
        except (OSError, ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
            return {}  # missing or damaged: everything is measured again


def time_call(call: Call, device: torch.device) -> float:
    """The minimum seconds of several calls: other load on the machine can only add time."""

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    call()
    finish()
    best, calls, end = float("inf"), 0, time.perf_counter() + _LEAST_SECONDS
    while calls < _FEWEST_CALLS or time.perf_counter() < end:
        started = time.perf_counter()
        call()
        finish()
        best, calls = min(best, time.perf_counter() - started), calls + 1
    return best


def conditions(device: torch.device) -> dict[str, str]:
    """The conditions that the time of a call depends on, apart from the call itself."""
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "engine": "eager",
        "torch": str(torch.__version__),
        "processor": processor,
        "device": device.type,
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.machine()}",
    }


def cache_directory() -> Path:
    """The folder in ``FXPRUNE_CACHE``, or ``fxprune`` in the user's cache directory."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fxprune"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'unknown'}, {torch.backends.cpu.get_cpu_capability()}"


@dataclass(frozen=True, eq=False)
class ShapedOp:
    """An operation of a layer with its surface, the axes of its widths, and how often one run calls it."""

    owner: str
    widths: tuple[Axis, ...]
    surface: Surface
    calls: float = 1


class LatencyModel(CostModel):
    """The seconds of one call of the network, as a function of which channels stay.

    It is a sum over operations that are timed one by one, so effects between them (a warm cache, a fused pair) are not
    included.
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
    """Stacks of operations with the same number of widths, with the positions of their widths among all."""
    starts = np.cumsum([0, *(len(op.widths) for op in shaped)])
    by_count: dict[int, list[int]] = defaultdict(list)
    for place, op in enumerate(shaped):
        by_count[len(op.widths)].append(place)
    found = []
    for count, places in by_count.items():
        columns = np.array([range(starts[p], starts[p] + count) for p in places], dtype=np.intp)
        found.append((SurfaceStack([shaped[p].surface for p in places]), places, columns))
    return found
