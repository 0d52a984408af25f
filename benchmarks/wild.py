"""Model classes of many public packages: proven, free in batch and sizes, trained, saved and exported."""

from __future__ import annotations

import copy
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import fx, nn

import fxprune
from benchmarks.coverage import shares_left_by_uniform_plan
from benchmarks.harness import (
    Outcome,
    Record,
    Sweep,
    failure_text,
    follows_batch,
    follows_resolution,
    share_imports,
    train_one_step,
)
from benchmarks.networks.wild_networks import IMPORTS, PACKAGES, wild_names, wild_network
from benchmarks.tables import ResumableTable, Row, markdown_table, report_fields, write_page
from fxprune.capture.samples import Sample
from fxprune.errors import ArtefactError, BudgetError
from fxprune.saving.comparing import tensors_of

COLUMNS = """
    model proven macs_removed batch sizes trains saves exports share_left opaque_share compile_s proof_s seconds failure
""".split()
_VERDICTS = ("proven", "batch", "sizes", "trains", "saves", "exports")
_GOOD = ("yes", "fixed")
# A failure of which the network is not the reason.
_LATE = re.compile(r"(not \w+: )?(TimeLimitReached|more than)")
# Wall-clock time that a network may take, as a multiple of its processor time.
_WAITS = 10


def cover(record: Record, model: str, ratio: float) -> None:
    """One row: half of the multiply-accumulates gone, or as much as can go, and what the result can do."""
    network = wild_network(model)
    record(stage="built")
    with torch.no_grad():  # a network that its package cannot run is nobody's to prune
        Sample.from_input(network.sample).call(network.model)
    record(stage="runs")
    pruned = _pruned(network.model, network.sample, ratio)
    report = fxprune.report(pruned)
    fields = report_fields(report)
    record(proven=bool(report.proof and not report.proof.vacuous))
    record(**{name: fields[name] for name in ("macs_removed", "compile_s", "proof_s")})
    record(opaque_share=sum(row.macs for row in report.opaque) / max(report.macs_before, 1))
    record(batch=follows_batch(network.model, pruned, network.sample))
    record(sizes=follows_resolution(network.model, pruned, network.sample))
    with tempfile.TemporaryDirectory() as folder:
        record(saves=_tried(lambda: _save(pruned, network.sample, Path(folder) / "saved")))
        record(**shares_left_by_uniform_plan(network.model, network.sample))
        copied = copy.deepcopy(pruned)
        record(trains=_tried(lambda: train_one_step(copied, network.training_sample)))
        record(exports=_tried(lambda: fxprune.export(pruned, Path(folder) / "net.pt2", sample_input=network.sample)))
    record(stage="done")


def _pruned(model: Any, sample: Any, ratio: float) -> fx.GraphModule:
    try:
        return fxprune.compile(model, sample, ratio)
    except BudgetError as error:
        if not error.reachable:
            raise
        return fxprune.compile(model, sample, int(error.reachable * 1000) / 1000)


def _save(pruned: fx.GraphModule, sample_input: Any, folder: Path) -> None:
    """Saved and loaded, it answers to the bit."""
    fxprune.save(pruned, folder)
    answers = [_answer(network.eval(), sample_input) for network in (_loaded(folder), pruned)]
    torch.testing.assert_close(*answers, rtol=0, atol=0, equal_nan=True)


@torch.no_grad()
def _answer(network: nn.Module, sample_input: Any) -> Any:
    torch.manual_seed(0)
    return tensors_of(Sample.from_input(sample_input).call(network))


def _loaded(folder: Path) -> fx.GraphModule:
    try:
        return fxprune.load(folder)
    except ArtefactError as error:  # it lists the package's own classes that it needs, which are trusted here
        named = re.findall(r"'([\w.]+:[\w.]+)'", str(error))
        return fxprune.load(folder, allow=named)


def _tried(check: Callable[[], object]) -> str:
    try:
        check()
    except Exception as error:  # whatever it raises is the verdict
        return f"no: {failure_text(error)}"
    return "yes"


def row_of(outcome: Outcome) -> dict[str, Any]:
    """The cells of one outcome; what its own package cannot build or run is told apart."""
    fields, failure = dict(outcome.fields), outcome.failure
    stage = fields.pop("stage", "")
    if failure and stage != "done":
        where = {"": "not built: ", "built": "not run: "}.get(stage, "")
        failure = where + failure
    return fields | {"seconds": outcome.processor_seconds, "failure": failure}


_NOTE = """What was measured: one small configuration of each model class of public packages, with random weights,
pruned by {ratio:g} of the multiply-accumulates, or as far as possible. Each network has a process of its own and
{limit:g} s of processor time.

To repeat it: `python -m benchmarks.wild`.

How to read it: *Proven*: the proof passed. *Batch*, *sizes*: it takes what the original takes (or the original takes
one only). *Trains*: finite gradients in one step. *Saves*: loaded again with the package's own classes allowed, the
outputs are equal to the bit. *Exports*: as a pt2 file, which is run and compared. `share_left`: the share of layer
weights that stays when 40 % of every group that is not pinned goes. `opaque_share`: the share of multiply-accumulates
in code that was not understood. `seconds`: processor time. A cell is empty if the time ran out before. Models that
their own package does not build or run in this configuration are listed last and not counted."""


def main(
    packages: Annotated[str, typer.Option(help="Names, separated by commas; all by default.")] = "",
    ratio: Annotated[float, typer.Option(help="Fraction of MACs to remove.")] = 0.5,
    limit_seconds: Annotated[float, typer.Option(help="Processor time that a network may take.")] = 240,
    memory_gib: Annotated[float | None, typer.Option(help="Memory that a network may allocate.")] = 8,
    again: Annotated[str, typer.Option(help="Repeat those whose failure or verdict fits this pattern.")] = "",
    out: Annotated[Path, typer.Option(help="Folder of the tables.")] = Path("benchmarks/results"),
    page_only: Annotated[bool, typer.Option("--page-only", help="Write the page of what is measured.")] = False,
) -> None:
    """Sweep over the packages that are installed; one that was stopped goes on where it was."""
    table = ResumableTable(out / "wild.csv", COLUMNS)
    names = [] if page_only else wild_names(packages.split(",") if packages else PACKAGES)
    if again:
        table.forget(lambda row: any(re.search(again, row[name]) for name in ("failure", *_VERDICTS)))
    share_imports(*IMPORTS)
    Sweep(cover, row_of, _WAITS * limit_seconds, {"ratio": ratio}, memory_gib, limit_seconds).run(names, table)
    rows = list(table.rows.values())
    write_page(
        out / "wild.md", "Networks of public packages", _NOTE.format(ratio=ratio, limit=limit_seconds), *_sections(rows)
    )
    if late := [name for name in names if _LATE.match(table.rows[name]["failure"])]:
        typer.echo(f"time ran out for {', '.join(late)}: their cells are empty", err=True)
        raise typer.Exit(1)


def _sections(rows: Sequence[Row]) -> list[str]:
    strange = [row for row in rows if _is_apart(row["failure"])]
    judged = [row for row in rows if row not in strange]
    by_package = [
        [package, *_counts([r for r in judged if r["model"].startswith(f"{package}/")])] for package in PACKAGES
    ]
    by_package.append(["all", *_counts(judged)])
    shown = [[_short(row[name]) for name in COLUMNS] for row in judged]
    return [
        markdown_table(["package", "networks", *_VERDICTS], by_package),
        markdown_table(COLUMNS, shown),
        markdown_table(["model", "failure"], [[row["model"], row["failure"][:90]] for row in strange]),
    ]


def _is_apart(failure: str) -> bool:
    """Whether there is nothing to judge: the network does not run, or nothing of it can go though all is traced."""
    nothing = "no prunable channels" in failure or "at most 0 can be removed" in failure
    return failure.startswith(("not built", "not run")) or (nothing and "opaque" not in failure)


def _counts(rows: Sequence[Row]) -> list[str]:
    good = Counter(name for row in rows for name in _VERDICTS if row[name] in _GOOD)
    return [str(len(rows)), *(str(good[name]) for name in _VERDICTS)]


def _short(cell: str) -> str:
    return cell if len(cell) <= 120 else cell[:117] + "..."


if __name__ == "__main__":
    typer.run(main)
