"""Ways to run a network: eager, ``torch.compile`` and onnxruntime."""

from __future__ import annotations

import copy
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Group as Stack
from rich.console import RenderableType
from rich.text import Text
from torch import nn

from fxprune.capture.samples import Sample
from fxprune.cost.measuring import Prepared, timed_alternately
from fxprune.errors import OptionError, described
from fxprune.reporting import MACS_MEANING, Report
from fxprune.saving.formats import FORMATS, onnx_session
from fxprune.util.tables import add_row, new_table, quantity


def _compiled(network: nn.Module, sample: Sample) -> Prepared:
    torch.compiler.reset()
    compiled = torch.compile(network)
    return lambda: sample.call(compiled)


def _onnxruntime(network: nn.Module, sample: Sample) -> Prepared:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        FORMATS["onnx"].write(copy.deepcopy(network), [sample], file)
        session = onnx_session(file, torch.get_num_threads())
    inputs = {
        argument.name: t.numpy(force=True) for argument, t in zip(session.get_inputs(), sample.tensors, strict=True)
    }
    return lambda: session.run(None, inputs)


RUNTIMES: Mapping[str, Callable[[nn.Module, Sample], Prepared]] = {
    "eager": lambda network, sample: lambda: sample.call(network),
    "compile": _compiled,
    "onnxruntime": _onnxruntime,
}


@dataclass(frozen=True)
class Latency:
    """The latency of the original and of the pruned network.

    Attributes:
        runtime: "eager", "compile" or "onnxruntime".
        batch: the batch size; None if the sample has none.
        threads: threads used inside one call.
        calls: timed calls of each network.
        original: median seconds of a call of the original network.
        pruned: median seconds of a call of the pruned network.
        failure: why there is no measurement; empty if there is one.
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
        """JSON data; without times if the measurement failed."""
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
    """Time both networks in each runtime at each batch size, and yield each result; the networks do not change.

    Args:
        original: the network before, in eval mode.
        pruned: the network after, in eval mode.
        sample_input: one call's arguments, as for :func:`fxprune.compile`.
        runtimes: among "eager", "compile" and "onnxruntime".
        batches: batch sizes, used if the sample has a batch.
        seconds: the minimum time for the calls of both networks together, at least three calls of each.

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
    if runtime == "onnxruntime" and (missing := FORMATS["onnx"].missing):
        return Latency(runtime, batch, threads, failure=missing)
    try:
        values = sample if batch is None else sample.with_batch(batch)
        with torch.no_grad():
            both = [RUNTIMES[runtime](network, values) for network in (original, pruned)]
            times = timed_alternately(both, seconds)
    except Exception as error:  # runtimes raise many types, and one that fails must not hide the others
        return Latency(runtime, batch, threads, failure=described(error))
    before, after = map(statistics.median, times)
    return Latency(runtime, batch, threads, len(times[0]), before, after)


def render_latencies(measured: Sequence[Latency], report: Report) -> RenderableType:
    """A table with a row for each runtime and batch size, below the ratio of MACs for comparison."""
    gain = report.macs_before / report.macs_after if report.macs_after else float("inf")
    macs = f"MACs {quantity(report.macs_before)} -> {quantity(report.macs_after)}: {gain:.2f} times fewer"
    threads = ", ".join(dict.fromkeys(f"{m.threads} thread{'s' * (m.threads > 1)}" for m in measured))
    table = new_table("runtime", ["batch", "original ms", "pruned ms", "times faster", "calls"])
    for row in measured:
        batch = "-" if row.batch is None else str(row.batch)
        if row.failure:
            add_row(table, row.runtime, batch, "-", "-", "-", "0")
        else:
            times = [f"{1e3 * seconds:.2f}" for seconds in (row.original, row.pruned)]
            add_row(table, row.runtime, batch, *times, f"{row.gain:.2f}", str(row.calls))
    failures = dict.fromkeys(f"{row.runtime}: {row.failure}" for row in measured if row.failure)
    notes = [Text(f"{threads}; medians; MACs are {MACS_MEANING}", style="dim"), *map(Text, failures)]
    return Stack(Text(macs, style="bold"), table, *notes)
