"""Tables that are taken up again where they stopped, and the pages that are made of them."""

from __future__ import annotations

import csv
import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fxprune import Report

_PACKAGES = ("torch", "torchvision", "timm", "transformers", "torch-pruning")


def describe_machine() -> str:
    """One sentence: processor, cores, threads, versions."""
    found = [f"{name} {version}" for name in _PACKAGES if (version := _version(name))]
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    return (
        f"Measured on {_processor()}, {os.cpu_count()} cores, OMP_NUM_THREADS={threads}, "
        f"Python {platform.python_version()}, {', '.join(found)}."
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


REPORT_COLUMNS = """
    macs_g parameters_m asked macs_removed parameters_removed proof proof_error vacuous batches resolutions pinned
    opaque compile_s proof_s
""".split()


def report_fields(report: Report) -> dict[str, Any]:
    """A value for each of ``REPORT_COLUMNS``: sizes of the original, fractions removed, the proof, counts, seconds."""
    proof = report.proof
    seconds = dict(report.seconds)
    proof_seconds = seconds.pop("verify", None)
    return {
        "macs_g": report.macs_before / 1e9,
        "parameters_m": report.parameters_before / 1e6,
        "asked": report.ratio,
        "macs_removed": _removed(report.macs_before, report.macs_after),
        "parameters_removed": _removed(report.parameters_before, report.parameters_after),
        "proof": proof.method if proof else report.unproven,
        "proof_error": proof.relative_error if proof else None,
        "vacuous": proof.vacuous if proof else None,
        "batches": " ".join(map(str, proof.batch_sizes)) if proof else "",
        "resolutions": " ".join(proof.resolutions) if proof else "",
        "pinned": len(report.pinned),
        "opaque": ", ".join(dict.fromkeys(row.name for row in report.opaque)),
        "compile_s": sum(seconds.values()),
        "proof_s": proof_seconds,
    }


def _removed(before: float, after: float) -> float:
    return 1 - after / before if before else 0.0


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

    def forget(self, which: Callable[[Row], bool]) -> None:
        """Leave out rows, which are then measured again."""
        self.rows = {key: row for key, row in self.rows.items() if not which(row)}
        self._write()

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
