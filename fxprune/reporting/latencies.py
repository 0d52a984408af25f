"""Measured latencies on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.text import Text

from fxprune.reporting.numbers import quantity
from fxprune.reporting.report import MACS_MEANING, Report
from fxprune.reporting.tables import add_row, new_table

__all__ = ["Measured", "render_latencies"]


class Measured(Protocol):
    """What a row needs; see :class:`fxprune.timing.Latency`."""

    runtime: str
    batch: int | None
    threads: int
    calls: int
    original: float
    pruned: float
    failure: str

    @property
    def gain(self) -> float:
        """How many times faster the pruned network is."""
        ...


def render_latencies(measured: Sequence[Measured], report: Report) -> RenderableType:
    """A row for each runtime and batch size, under the ratio of multiply-accumulates that they stand beside."""
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
