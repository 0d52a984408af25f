"""Compares two results: what each removed, how close each stays to its original, and the widths of each."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.text import Text

from fxprune.reporting.report import MACS_MEANING, Report, removed
from fxprune.util.tables import PrintedInNotebook, add_row, new_table, percent, plain_text, quantity, with_rest

_TOP = 15
_UNITS = {"weights on disk, 4 bytes each": "B", "memory of a call": "B", "time of a call": "s"}


@dataclass(frozen=True)
class CostPair:
    """One cost of two results: of the originals (``before``) and of the pruned networks (``after``)."""

    name: str
    before: tuple[float, float]
    after: tuple[float, float]

    @property
    def removed(self) -> tuple[float, float]:
        """The fraction that each removed."""
        return removed(self.before[0], self.after[0]), removed(self.before[1], self.after[1])


@dataclass(frozen=True)
class WidthPair:
    """A channel group in two results; None where one of them has no such group."""

    name: str  # the group's name
    before: tuple[int | None, int | None]  # channels of the originals
    after: tuple[int | None, int | None]  # channels of the pruned networks
    # The output error when this group alone is cut, as in :class:`fxprune.reporting.GroupRow`.
    errors: tuple[float | None, float | None]


@dataclass(frozen=True, repr=False)
class Comparison(PrintedInNotebook):
    """The result of :meth:`fxprune.Report.compare`; ``print`` and notebooks show it as text.

    Attributes:
        first, second: the reports.
        names: the names of the two in the output.
    """

    first: Report
    second: Report
    names: tuple[str, str] = ("first", "second")

    @property
    def costs(self) -> list[CostPair]:
        """A row for each cost that both reports have."""
        one, two = map(_costs, (self.first, self.second))
        return [CostPair(n, (one[n][0], two[n][0]), (one[n][1], two[n][1])) for n in one if n in two]

    @property
    def widths(self) -> list[WidthPair]:
        """A row for each group of either report, in the network's order."""
        one, two = ({row.name: row for row in report.groups} for report in (self.first, self.second))
        found = []
        for name in {**one, **two}:
            rows = [vars(side[name]) if name in side else {} for side in (one, two)]
            found.append(WidthPair(name, *((rows[0].get(n), rows[1].get(n)) for n in ("before", "after", "error"))))
        return found

    @property
    def settings(self) -> dict[str, tuple[str, str]]:
        """The settings that differ."""
        one, two = self.first.settings, self.second.settings
        pairs = {name: (_setting_text(one.get(name)), _setting_text(two.get(name))) for name in {**one, **two}}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    @property
    def fidelity(self) -> dict[str, tuple[str, str]]:
        """How close the final networks are to their originals, by measure, if both reports have it."""
        if not self.first.fidelity or not self.second.fidelity:
            return {}
        last = (self.first.fidelity[-1], self.second.fidelity[-1])
        measures = {"outputs off by": "error", "same largest entry": "agreement"}
        words = {n: (_percent(getattr(last[0], m)), _percent(getattr(last[1], m))) for n, m in measures.items()}
        return {**words, "samples": (str(last[0].samples), str(last[1].samples))}

    def as_dict(self) -> dict[str, Any]:
        """JSON data."""
        costs = [{"name": r.name, "before": r.before, "after": r.after, "removed": r.removed} for r in self.costs]
        tables = {"costs": costs, "widths": [vars(row) for row in self.widths]}
        return {"names": self.names, **tables, "fidelity": self.fidelity, "settings": self.settings}

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write it as one HTML file that loads nothing else; the file appears whole or not at all.

        Raises:
            FileError: the file cannot be written.
        """
        from fxprune.reporting.page import comparison_as_html
        from fxprune.util.writing import checked_path, write_text

        write_text(checked_path(path), comparison_as_html(self))

    def render(self, *, verbose: bool = False) -> RenderableType:
        """The comparison as a rich renderable; ``verbose`` shows every group."""
        parts: list[RenderableType] = [Text(f"{self.names[0]} beside {self.names[1]}", style="bold")]
        table = new_table("", ["original", *self.names, "removed", "removed"])
        for row in self.costs:
            cells = [with_unit(row.name, row.before), *(with_unit(row.name, (value, value)) for value in row.after)]
            add_row(table, row.name, *cells, *map(percent, row.removed))
        parts += [table, Text(f"MACs: {MACS_MEANING}", style="dim")]
        for title, pairs in (("near the original", self.fidelity), ("setting", self.settings)):
            if pairs:
                table = new_table(title, [], last=self.names[0])
                table.add_column(self.names[1], overflow="fold")
                for name, pair in pairs.items():
                    add_row(table, name, *pair)
                parts += [Text(""), table]
        return Stack(*parts, Text(""), self._widths_table(verbose))

    def _widths_table(self, verbose: bool) -> RenderableType:
        rows = self.widths if verbose else sorted(self.widths, key=lambda row: -_width_difference(row))[:_TOP]
        with_errors = any(error is not None for row in self.widths for error in row.errors)
        table = new_table("group", ["original", *self.names, *["error added"] * 2 * with_errors])
        for row in rows:
            known = dict.fromkeys(str(width) for width in row.before if width is not None)
            cells = ["-" if width is None else str(width) for width in row.after]
            add_row(table, row.name, " / ".join(known), *cells, *map(_percent, row.errors * with_errors))
        return with_rest(table, len(self.widths) - len(rows), "groups, of which less differs")

    def __repr__(self) -> str:
        return f"<Comparison: {self.names[0]} beside {self.names[1]}>"

    def __str__(self) -> str:
        return plain_text(self.render())


def with_unit(name: str, pair: tuple[float, float]) -> str:
    """A cost of two networks with its unit; written once if it is the same for both."""
    return " / ".join(dict.fromkeys(f"{quantity(value)}{_UNITS.get(name, '')}" for value in pair))


def _costs(report: Report) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {
        "MACs": (report.macs_before, report.macs_after),
        "parameters": (report.parameters_before, report.parameters_after),
        "weights on disk, 4 bytes each": (4 * report.parameters_before, 4 * report.parameters_after),
    }
    if report.memory_before:
        found["memory of a call"] = (report.memory_before, report.memory_after)
    if report.latency is not None and report.latency.measured is not None:
        found["time of a call"] = report.latency.measured
    return found


def _percent(value: float | None) -> str:
    return "-" if value is None else percent(value)


def _setting_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return "-" if value is None else str(value)


def _width_difference(row: WidthPair) -> float:
    first, second = row.after
    return float("inf") if first is None or second is None else abs(first - second)
