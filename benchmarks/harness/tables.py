"""Tables: CSV files that a stopped sweep takes up again, and Markdown pages made from them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.harness.machine import describe_machine

Cells = Sequence[str]
Row = Mapping[str, str]


class ResumableTable:
    """A CSV file whose first column names what was measured; every row is on disk as soon as it is known."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        """Open or start the file.

        Raises:
            ValueError: the file has other columns.
        """
        self.path = path
        self.columns = tuple(columns)
        self.rows: dict[str, Row] = {}
        if path.exists():
            self._read()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write()

    def add(self, row: Mapping[str, object]) -> None:
        """Append a row, or replace the one of the same name; columns without a value stay empty."""
        text = {name: as_text(row.get(name)) for name in self.columns}
        key = text[self.columns[0]]
        known = key in self.rows
        self.rows[key] = text
        if known:
            self._write()
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(text)

    def markdown(self, columns: Sequence[str] | None = None) -> str:
        """The rows, or some columns of them, as a Markdown table."""
        shown = self.columns if columns is None else columns
        return markdown_table(shown, [[row[name] for name in shown] for row in self.rows.values()])

    def _read(self) -> None:
        with self.path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != self.columns:
                raise ValueError(f"{self.path} has other columns than this sweep writes: move it away to start afresh")
            self.rows = {row[self.columns[0]]: row for row in reader}

    def _write(self) -> None:
        part = self.path.with_suffix(".part")
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows.values())
        part.replace(self.path)


def as_text(value: object) -> str:
    """A cell: numbers short, nothing for None, one line."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(str(value).split())


def markdown_table(columns: Sequence[str], rows: Iterable[Cells]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def write_page(path: Path, title: str, note: str, *sections: str) -> None:
    """A Markdown page with a title, what was measured and on what, and the given sections."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join([f"# {title}", note, describe_machine(), *sections]) + "\n", encoding="utf-8")
