"""Every network of a library: is it pruned, proven, how far, how fast; and the same of torch-pruning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks.covering import ours, theirs
from benchmarks.covering.shares import CHANNEL_RATIO
from benchmarks.harness.sweeping import Sweep
from benchmarks.harness.tables import ResumableTable, Row, markdown_table, write_page
from benchmarks.networks import model_names

_RESULTS = Path("benchmarks/results")
_RIVAL = "torch-pruning"
_HIDDEN = ("macs_g", "parameters_m", "proof", "vacuous", "batches", "seconds")
_SHOWN = [name for name in ours.COLUMNS if name not in _HIDDEN]

_NOTE = """Each network in a process of its own, stopped after {limit:g} s, with random weights{where}. `asked` and
`macs_removed` are fractions of the multiply-accumulates of convolution, linear and matmul; where the ratio asked for
cannot be reached, `in_the_way` names the pinned widths and the network is pruned as far as one can get. `equal`: the
proof passed; `proof_error`: its largest relative error, at `resolutions`. `share_left`: the share of weights that
stays when {channels:.0%} of every group that is not pinned goes, 0.36 where nothing is pinned, less where a width is
a product of two groups, such as heads and head_dim; layers at the network's input and output, which must keep a width,
are left out there and counted in `share_left_all`. `opaque`: operations not seen into. `other_batch`: outputs of the
original's shapes at another batch size. `parameters_trained`: parameters with a finite gradient in one step of SGD.
`peak_mib`: largest resident size of the process, proof included."""
_THEIR_NOTE = """torch-pruning by the recipe of its documentation, {channels:.0%} of the channels of every layer; its
result judged by the same proof: the kept entries of every tensor, then outputs against the original without the others.
`runs` is "outputs cut" where the network's own outputs, such as classes, were pruned."""


def main(
    library: Annotated[str, typer.Option(help="torchvision, timm or transformers.")] = "torchvision",
    against: Annotated[str, typer.Option(help=f'"{_RIVAL}" measures that library, too.')] = "",
    models: Annotated[str, typer.Option(help="Names, separated by commas; the whole library by default.")] = "",
    families: Annotated[
        bool, typer.Option("--families", help="The smallest model of each family only (timm).")
    ] = False,
    meta: Annotated[
        bool, typer.Option("--meta", help="On the meta device: by structure, without weights or proof.")
    ] = False,
    ratio: Annotated[float, typer.Option(help="Fraction of MACs to remove.")] = 0.5,
    image_size: Annotated[int, typer.Option(help="Smaller images, where a network takes them; 0: its own.")] = 0,
    limit_seconds: Annotated[float, typer.Option(help="Time that a network may take.")] = 120,
    memory_gib: Annotated[float | None, typer.Option(help="Memory that a network may allocate.")] = None,
    again: Annotated[bool, typer.Option(help="Repeat those that failed.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the tables.")] = _RESULTS,
) -> None:
    """Sweep over a library; one that was stopped goes on where it was."""
    if against not in ("", _RIVAL):
        raise typer.BadParameter(f"the only library to compare with is {_RIVAL}")
    names = models.split(",") if models else model_names(library, families=families)
    stem = f"coverage_{library}" + "_families" * families + "_meta" * meta
    table = ResumableTable(out / f"{stem}.csv", ours.COLUMNS)
    arguments = {"library": library, "ratio": ratio, "meta": meta, "image_size": image_size}
    Sweep(ours.cover, ours.cover_row, limit_seconds, arguments, memory_gib).run(names, table, again=again)
    their_table = ResumableTable(out / f"{stem}_torch_pruning.csv", theirs.COLUMNS) if against else None
    if their_table is not None:
        call = {"library": library, "limit_seconds": limit_seconds, "image_size": image_size}
        # Judging takes about as long as pruning may.
        sweep = Sweep(theirs.cover_torch_pruning, theirs.their_row, 3 * limit_seconds, call, memory_gib)
        sweep.run(names, their_table, again=again)
    note = _NOTE.format(limit=limit_seconds, channels=CHANNEL_RATIO, where=_where(meta, image_size))
    write_page(out / f"{stem}.md", f"Coverage of {library}", note, *_sections(table, their_table))


def _where(meta: bool, image_size: int) -> str:
    pixels = f", on images of {image_size} pixels where it takes them (clips of half of that)" if image_size else ""
    return " on the meta device" * meta + pixels


def _sections(table: ResumableTable, their_table: ResumableTable | None) -> list[str]:
    rows = list(table.rows.values())
    sections = [summary(rows), table.markdown(_SHOWN)]
    if their_table is not None:
        note = _THEIR_NOTE.format(channels=CHANNEL_RATIO)
        sections += [f"## {_RIVAL}\n\n{note}", side_by_side(table, their_table), their_table.markdown()]
    return sections


def summary(rows: Sequence[Row]) -> str:
    """How many were pruned and proven, the median of the share left, and which networks keep more than 0.45."""
    pruned = sum(row["pruned"] == "yes" for row in rows)
    equal = sum(row["equal"] == "yes" for row in rows)
    shares = {row["model"]: float(row["share_left"]) for row in rows if row["share_left"]}
    text = f"{len(rows)} networks: {pruned} pruned, {equal} of them proven equal."
    if shares:
        above = [f"{name} ({share:.2f})" for name, share in shares.items() if share > 0.45]
        text += f" Median share left {median(shares.values()):.3f}; above 0.45: {', '.join(above) or 'none'}."
    return text


def side_by_side(table: ResumableTable, their_table: ResumableTable) -> str:
    """Both libraries in one table: pruned, equal, share left and seconds."""
    columns = ("model", "pruned", *(f"{name} ({_RIVAL})" for name in ("pruned", "runs")), "equal", f"equal ({_RIVAL})")
    columns += ("share_left", f"share_left ({_RIVAL})", "seconds", f"seconds ({_RIVAL})")
    empty = dict.fromkeys(their_table.columns, "")
    rows = []
    for name, row in table.rows.items():
        their = their_table.rows.get(name, empty)
        cells = [name, row["pruned"], their["pruned"], their["runs"], row["equal"], their["equal"]]
        rows.append([*cells, row["share_left"], their["share_left"], row["compile_s"], their["prune_s"]])
    return markdown_table(columns, rows)


if __name__ == "__main__":
    typer.run(main)
