"""Published pruning results counted again: is each row's reduction met, and what becomes of the parameters?"""

from __future__ import annotations

import time
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.accounting import meeting
from benchmarks.accounting.meeting import HALF_A_POINT, Met, Subject, meet, meet_widths, subject_of
from benchmarks.accounting.rows import PublishedRow, criterion_for, given_widths, published_rows
from benchmarks.tables import ResumableTable, write_page
from fxprune.errors import FxpruneError

_COLUMNS = (
    "row",
    "criterion",
    "weights",
    "images",
    "counting",
    "published baseline",
    "counted baseline",
    "published FLOPs removed",
    "FLOPs removed",
    "within half a point",
    "published parameters removed",
    "parameters removed",
    "published accuracy",
    "proof error",
    "seconds",
    "note",
)
_SHOWN = tuple(c for c in _COLUMNS if c not in ("weights", "images", "counting", "seconds", "published accuracy"))
_NOTE = (
    "FLOPs and parameters removed, by each paper's own counting rule, beside the published figures. The ratio is the "
    "published reduction of FLOPs (of parameters where no FLOPs were published); no width is set by hand, except for "
    "the two rows of VGG-16 whose published per-layer rates are the input. Weights are random apart from the trained "
    "ResNet-56 for CIFAR-10, so accuracies are the papers' and nothing is said about them here."
)
_RANGES = (
    "The same reductions of FLOPs with channels taken from one end of the network only: so many parameters can go with "
    "them, depending on where channels are taken."
)
_SEGMENTATION = (
    "Of Xiu et al. 2022 no numeric row could be read. Their segmentation networks at half of their MACs, with their "
    "criterion (sets of filters judged by the output) and couplings kept:"
)


def main(
    out: Annotated[Path, typer.Option(help="The CSV file; the page goes beside it.")] = Path(
        "benchmarks/results/papers_accounting.csv"
    ),
    only: Annotated[str, typer.Option(help="Rows whose name contains this.")] = "",
    again: Annotated[bool, typer.Option(help="Repeat rows that are in the table.")] = False,
    seed: Annotated[int, typer.Option(help="Of random weights and images.")] = 0,
) -> None:
    """Measure the rows that are missing from the table, then write its page."""
    table = ResumableTable(out, _COLUMNS)
    rows = [row for row in published_rows() if only in row.name and (again or row.name not in table.rows)]
    for number, row in enumerate(rows, 1):
        print(f"{number}/{len(rows)} {row.name}", flush=True)
        table.add(_measured(row, seed))
    between = ResumableTable(out.with_name(f"{out.stem}_ranges.csv"), meeting.RANGE_COLUMNS)
    for row in (r for r in published_rows() if r.flops_removed and only in r.name):
        if again or row.name not in between.rows:
            print(f"ranges of {row.name}", flush=True)
            between.add(meeting.range_row(row))
    others = ResumableTable(out.with_name(f"{out.stem}_segmentation.csv"), meeting.SEGMENTATION_COLUMNS)
    for name in meeting.NETWORKS:
        if only in name and (again or name not in others.rows):
            print(name, flush=True)
            others.add(meeting.segmentation_row(name, seed=seed))
    sections = [table.markdown(_SHOWN), _RANGES, between.markdown(), _SEGMENTATION, others.markdown()]
    write_page(out.with_suffix(".md"), "Published reductions, met", _NOTE, *sections)


def _measured(row: PublishedRow, seed: int) -> dict[str, object]:
    started = time.perf_counter()
    torch.manual_seed(seed)
    cells: dict[str, object] = {"row": row.name, "counting": row.rule.name, "published accuracy": row.accuracy}
    cells["published FLOPs removed"] = _percent(row.flops_removed)
    cells["published parameters removed"] = _percent(row.params_removed)
    cells["published baseline"] = _baseline(row)
    try:
        subject = subject_of(row, seed=seed)
        criterion = criterion_for(row.criterion, row.network)
        met, note = _met(row, subject, criterion)
        cells |= {"criterion": _described(criterion), "weights": subject.weights, "images": subject.data, "note": note}
        cells |= _found(row, met)
    except FxpruneError as error:
        cells["note"] = f"{type(error).__name__}: {error}"
    return cells | {"seconds": f"{time.perf_counter() - started:.0f}"}


def _met(row: PublishedRow, subject: Subject, criterion: Any) -> tuple[Met, str]:
    widths = given_widths(row)
    if widths is None:
        return meet(row, subject, criterion), ""
    return meet_widths(row, subject, criterion, widths), "published rates"


def _found(row: PublishedRow, met: Met) -> dict[str, object]:
    return {
        "counted baseline": f"{met.flops_before / 1e6:.2f} M, {met.params_before / 1e6:.2f} M",
        "FLOPs removed": _percent(met.flops_removed),
        "parameters removed": _percent(met.params_removed),
        "within half a point": abs(met.misses(row)) <= HALF_A_POINT,
        "proof error": f"{met.proof_error:.0e}",
    }


def _described(criterion: Any) -> str:
    """The name, and the options that are not the default ones."""
    chosen = [(f.name, getattr(criterion, f.name), f.default) for f in fields(criterion)]
    told = [f"{name}={value}" for name, value, default in chosen if default is not MISSING and value != default]
    parts = [f"({_described(value)})" for _, value, default in chosen if default is MISSING]
    return " ".join([criterion.name, *told, *parts])


def _baseline(row: PublishedRow) -> str:
    printed = [f"{pair[0]:g} M" for pair in (row.flops, row.params) if pair is not None and pair[0] != 100]
    return ", ".join(printed)


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{fraction:.2%}"


if __name__ == "__main__":
    typer.run(main)
