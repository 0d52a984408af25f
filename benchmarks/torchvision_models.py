"""torchvision's common networks: pruned, proven, trained one step, run at another batch size and resolution."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

import fxprune
from benchmarks.harness import Outcome, Record, Sweep, follows_batch, follows_resolution, train_one_step
from benchmarks.networks import COMMON, find_network
from benchmarks.tables import REPORT_COLUMNS, ResumableTable, report_fields, write_page

_CHECKS = ["other_batch", "other_resolution", "parameters_trained"]
COLUMNS = ["model", "status", *REPORT_COLUMNS, *_CHECKS, "seconds", "peak_mib", "failure"]
_SHOWN = [name for name in COLUMNS if name not in ("macs_g", "parameters_m", "vacuous", "pinned", "seconds")]

_NOTE = """What was measured: networks of torchvision with random weights at the input size of their published weights,
each pruned, proven, run at other sizes and trained for a step in a process of its own.

To repeat it: `python -m benchmarks.torchvision_models`.

How to read it: `macs_removed` and `parameters_removed` are fractions. `proof_error` is the largest relative difference
from the masked original ("masked"), or from the original evaluated over its kept entries ("nan-carrying"), at the batch
sizes and resolutions listed. `other_batch`, `other_resolution`: whether the outputs have the original's shapes there;
"fixed" if the original itself refuses. `parameters_trained`: parameters with a finite gradient in one step of SGD in
train mode. `peak_mib`: largest resident size of the process, including the proof."""


def check(record: Record, model: str, ratio: float) -> None:
    """One row of the table."""
    network = find_network("torchvision", model)
    check_network(record, network.model, network.sample, ratio)


def check_network(record: Record, model: nn.Module, sample: Any, ratio: float) -> None:
    """Prune, prove, run at other sizes, train; record each result as soon as it is there."""
    pruned = fxprune.compile(model, sample, ratio)
    record(**report_fields(fxprune.report(pruned)))
    record(other_batch=follows_batch(model, pruned, sample))
    record(other_resolution=follows_resolution(model, pruned, sample))
    record(parameters_trained=train_one_step(pruned, sample))


def to_row(outcome: Outcome) -> Mapping[str, object]:
    """The cells of one outcome."""
    fields = outcome.fields
    refused = [name for name in ("other_batch", "other_resolution") if str(fields.get(name, "")).startswith("no")]
    failure = outcome.failure or "; ".join(f"{name}: {fields[name]}" for name in refused)
    status = "failed" if failure else "vacuous" if fields["vacuous"] else "ok"
    measured = {"seconds": outcome.seconds, "peak_mib": round(outcome.peak_mib)}
    return fields | measured | {"status": status, "failure": failure}


def main(
    models: Annotated[str, typer.Option(help="Names, separated by commas; the common ones by default.")] = "",
    ratio: Annotated[float, typer.Option(help="Fraction of MACs to remove.")] = 0.5,
    limit_seconds: Annotated[float, typer.Option(help="Time that a model may take.")] = 900,
    memory_gib: Annotated[float | None, typer.Option(help="Memory that a model may allocate.")] = None,
    again: Annotated[bool, typer.Option(help="Repeat those that failed.")] = False,
    out: Annotated[Path, typer.Option(help="Table to write or go on with; .md beside it.")] = Path(
        "benchmarks/results/torchvision.csv"
    ),
) -> None:
    """Measure torchvision's networks; a sweep that was stopped goes on where it was."""
    table = ResumableTable(out, COLUMNS)
    sweep = Sweep(check, to_row, limit_seconds, {"ratio": ratio}, memory_gib)
    sweep.run(models.split(",") if models else COMMON, table, again=again)
    write_page(out.with_suffix(".md"), "torchvision", _NOTE, table.markdown(_SHOWN))


if __name__ == "__main__":
    typer.run(main)
