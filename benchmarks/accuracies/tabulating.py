"""The measured rows as one table for each budget."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.harness.tables import Row, markdown_table

__all__ = ["COLUMNS", "page_of"]

COLUMNS = (
    "case",
    "method",
    "ratio",
    "removed",
    "cut",
    "recalibrated",
    "reconstructed",
    "seed",
    "steps",
    "fine_tuned",
    "distilled",
    "seconds",
)
_SHOWN = ("method", "MACs removed", "cut only", "batch norm recalibrated", "reconstructed", "fine-tuned", "distilled")


def page_of(rows: Sequence[Row]) -> str:
    """A table for each budget; trainings are the mean over seeds, with least and greatest, and their number."""
    original = next(row for row in rows if row["method"] == "original")
    parts = [f"Accuracy of the original: {original['cut']} %. All numbers in percent."]
    for ratio in sorted({row["ratio"] for row in rows if row["ratio"]}):
        untrained = [row for row in rows if row["ratio"] == ratio and not row["seed"]]
        lines = [_line(row, [r for r in rows if r["seed"] and _same(r, row)]) for row in untrained]
        parts.append(f"## {float(ratio):.0%} of the MACs removed\n\n{markdown_table(_SHOWN, lines)}")
    return "\n\n".join(parts)


def _same(row: Row, other: Row) -> bool:
    return row["method"] == other["method"] and row["ratio"] == other["ratio"]


def _line(row: Row, trained: Sequence[Row]) -> list[str]:
    plain = [row[name] for name in ("method", "removed", "cut", "recalibrated", "reconstructed")]
    return plain + [_spread([float(r[name]) for r in trained]) for name in ("fine_tuned", "distilled")]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.2f} (1 seed)"
    return f"{mean:.2f} ({min(values):.2f} to {max(values):.2f}, {len(values)} seeds)"
