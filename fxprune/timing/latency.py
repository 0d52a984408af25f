"""Two networks timed in one run, in turns, so that a change of the machine's speed meets both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from fxprune.errors import OptionError
from fxprune.samples import Sample
from fxprune.timing.runtimes import RUNTIMES, Prepared, missing

__all__ = ["Latency", "in_turns", "measure_latency"]

_WARM_UP, _FEWEST = 2, 3


@dataclass(frozen=True)
class Latency:
    """The latency of the original and of the pruned network.

    Attributes:
        runtime: "eager", "compile" or "onnxruntime".
        batch: the batch size; None where the sample has none.
        threads: threads used inside one call.
        calls: timed calls of each network.
        original: median seconds of a call of the original network.
        pruned: median seconds of a call of the pruned network.
        failure: why there is no measurement; empty where there is one.
    """

    runtime: str
    batch: int | None
    threads: int
    calls: int = 0
    original: float = float("nan")
    pruned: float = float("nan")
    failure: str = ""

    @property
    def gain(self) -> float:
        """How many times faster the pruned network is."""
        return self.original / self.pruned

    def as_dict(self) -> dict[str, Any]:
        """JSON data; without numbers where the measurement failed."""
        data = asdict(self)
        if self.failure:
            return {name: data[name] for name in ("runtime", "batch", "threads", "failure")}
        return {**data, "gain": self.gain}


def measure_latency(
    original: nn.Module,
    pruned: nn.Module,
    sample_input: Any,
    *,
    runtimes: Iterable[str] = tuple(RUNTIMES),
    batches: Iterable[int] = (1, 8),
    seconds: float = 1.0,
) -> Iterator[Latency]:
    """Time both networks by each runtime at each batch size, one result after another; both stay as they are.

    Args:
        original: the network before, in eval mode.
        pruned: the network after, in eval mode.
        sample_input: one call's arguments, as for :func:`fxprune.compile`.
        runtimes: among "eager", "compile" and "onnxruntime".
        batches: batch sizes, where the sample has a batch.
        seconds: how long the calls of both networks together last at least, three of each at least.

    Raises:
        OptionError: an unknown runtime.
    """
    chosen = list(runtimes)
    unknown = next((name for name in chosen if name not in RUNTIMES), None)
    if unknown is not None:
        raise OptionError(f"unknown runtime {unknown!r}: choose among {', '.join(RUNTIMES)}")
    sample = Sample.from_input(sample_input).with_values()
    sizes: list[int | None] = list(batches) if sample.batch_size else [None]
    for runtime in chosen:
        for size in sizes:
            yield _measured(runtime, size, original, pruned, sample, seconds)


def _measured(
    runtime: str, batch: int | None, original: nn.Module, pruned: nn.Module, sample: Sample, seconds: float
) -> Latency:
    threads = torch.get_num_threads()
    if reason := missing(runtime):
        return Latency(runtime, batch, threads, failure=reason)
    try:
        values = sample if batch is None else sample.with_batch(batch)
        with torch.no_grad():
            both = [RUNTIMES[runtime](network, values) for network in (original, pruned)]
            times = in_turns(both, seconds)
    except Exception as error:  # runtimes raise many types, and one that fails must not hide the others
        return Latency(runtime, batch, threads, failure=f"{type(error).__name__}: {error!s:.200}")
    before, after = map(statistics.median, times)
    return Latency(runtime, batch, threads, len(times[0]), before, after)


def in_turns(calls: Sequence[Prepared], seconds: float) -> list[list[float]]:
    """The seconds of each of ``calls``, which take turns: at least three times, and ``seconds`` all together."""
    for call in [*calls] * _WARM_UP:
        call()
    times: list[list[float]] = [[] for _ in calls]
    while sum(map(sum, times)) < seconds or len(times[0]) < _FEWEST:
        for call, found in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            found.append(time.perf_counter() - started)
    return times
