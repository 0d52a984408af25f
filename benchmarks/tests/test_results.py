"""The checked-in table is complete, says that every row is met, and its differences are possible ones."""

from __future__ import annotations

import csv
from pathlib import Path

from benchmarks.accounting.rows import published_rows

_RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def read(name: str) -> dict[str, dict[str, str]]:
    with (_RESULTS / name).open(newline="", encoding="utf-8") as file:
        return {row["row"]: row for row in csv.DictReader(file)}


def test_every_row_is_met_and_proven() -> None:
    table = read("papers_accounting.csv")
    assert list(table) == [row.name for row in published_rows()]
    for row in table.values():
        assert row["within half a point"] == "yes"
        assert float(row["proof error"]) <= 1e-9


def test_published_parameters_lie_between_the_extremes() -> None:
    extremes = read("papers_accounting_ranges.csv")
    for row in published_rows():
        if row.flops_removed is not None and row.params_removed is not None:
            low, high = (float(extremes[row.name][f"{end} layers first"].rstrip("%")) for end in ("early", "late"))
            assert low < 100 * row.params_removed < high, row.name
