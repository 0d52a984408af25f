"""Numbers and tables as text for people."""

from __future__ import annotations

import functools
import html
import importlib.metadata
import io
import os
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.console import Group as Stack
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text


def quantity(value: float) -> str:
    """A count with a decimal prefix and about four digits: ``4.089 G``."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        # A number that would round up to 1000 takes the next prefix.
        if abs(value) >= 0.9995 * factor:
            return f"{value / factor:.4g} {prefix}"
    return f"{value:.4g}"


def percent(fraction: float) -> str:
    """A fraction as a percentage with one digit after the point."""
    return f"{100 * fraction:.1f} %"


def short_seconds(value: float) -> str:
    """Seconds with two digits after the point."""
    return f"{value:.2f}"


_TOP_LISTED = 5
_WIDTH = 100
_NAME = 46  # columns of a terminal that a name gets at least


@dataclass
class Whole:
    """A cell that is not wrapped: whole in a file or a pipe, shortened in the middle on a terminal without room."""

    text: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        least = min(len(self.text), _NAME) if console.is_terminal else len(self.text)
        return Measurement(least, least)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = max(options.max_width, 3)
        left = (room - 1) // 2
        short = self.text if len(self.text) <= room else f"{self.text[:left]}…{self.text[left + 1 - room :]}"
        yield Text(short, no_wrap=True)


def new_table(first: str, numbers: Iterable[str], last: str | None = None) -> Table:
    """A table with a column of names, columns of numbers and optionally a column of long text."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False, header_style="bold")
    table.add_column(first, no_wrap=True, min_width=18)
    for name in numbers:
        table.add_column(Whole(name), justify="right", no_wrap=True)
    if last is not None:
        table.add_column(last, overflow="fold")
    return table


def add_row(table: Table, *cells: str) -> None:
    """Add a row of plain text."""
    table.add_row(*(Whole(c) if column.no_wrap else Text(c) for column, c in zip(table.columns, cells, strict=True)))


def with_rest(table: Table, rest: int, what: str = "") -> RenderableType:
    """The table and, if rows were left out, a line that says how many."""
    return Stack(table, Text(f"... {rest} more {what}".rstrip(), style="dim")) if rest > 0 else table


def listing(name: str, rows: Sequence[tuple[str, str, str]], verbose: bool) -> RenderableType:
    """Rows of (name, reason, where). Without ``verbose``: only the first few, and without the column ``where``."""
    shown = rows if verbose else [(row[0], row[1], "") for row in rows[:_TOP_LISTED]]
    table = new_table(name, [])
    columns = ["why", "where"] if any(where for _, _, where in shown) else ["why"]
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in shown:
        add_row(table, *row[: 1 + len(columns)])
    return with_rest(table, len(rows) - len(shown))


# Characters that a terminal obeys or that turn the direction of text, except ends of lines and tabs.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text with a mark in place of each character that a terminal would obey: names may come from anywhere."""
    return _CONTROLS.sub("\ufffd", text)


@dataclass
class Printable:
    """Something to print, with its text made :func:`printable`; colours stay."""

    content: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.content, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def plain_text(renderable: RenderableType) -> str:
    """The text on a console of 100 columns (more if names need it), without colours and trailing blanks."""
    stream = io.StringIO()
    least = Measurement.get(Console(width=10_000), Console(width=10_000).options, renderable).minimum
    console = Console(
        file=stream, width=max(_WIDTH, least), color_system=None, force_terminal=False, legacy_windows=False
    )
    console.print(Printable(renderable))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()).strip("\n")


def labelled(label: str, content: str) -> RenderableType:
    """A paragraph with a label in the margin."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="bold", width=8)
    grid.add_column(overflow="fold")
    add_row(grid, label, content)
    return grid


def versions() -> dict[str, str]:
    """Versions of fxprune, torch and Python, by name."""
    return {"fxprune": _own_version(), "torch": str(torch.__version__), "python": platform.python_version()}


@functools.cache  # reading it takes longer than pruning a small network
def _own_version() -> str:
    try:
        return importlib.metadata.version("fxprune")
    except importlib.metadata.PackageNotFoundError:
        return "from source"


def machine() -> dict[str, str]:
    """The facts about this machine that timings depend on: system, cores, torch's threads and accelerator."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count() or "unknown"),
        "threads": str(torch.get_num_threads()),
        "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
    }


class PrintedInNotebook:
    """An object that a notebook shows as its printed text."""

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"
