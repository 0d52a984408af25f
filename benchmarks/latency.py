"""How many times faster networks are with half of their MACs, beside how many times fewer MACs they have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.harness.processes import Outcome
from benchmarks.harness.sweeping import Sweep
from benchmarks.harness.tables import ResumableTable, as_text, markdown_table, write_page
from benchmarks.latencies.timing import time_forms
from benchmarks.latencies.variants import ORIGINAL, Place, compile_once, forms, prepare
from fxprune.saving.timing import RUNTIMES

MODELS = ("resnet50", "mobilenet_v2", "efficientnet_b0", "convnext_tiny", "vit_b_16", "deeplabv3_resnet50")
VARIANTS = ("1", "8", "16", "latency")
BATCHES = (1, 8)
_LIMIT_SECONDS = 3600

_NOTE = """torchvision's networks with random weights, pruned globally by magnitude to half of their MACs; in the rows
called latency, to half of the latency that `budget="latency"` predicts at batch 1. All forms of a network run in turns
in one process, with {threads} for each call and images of {size} x {size} pixels. A gain is the original's median time
over the pruned network's, `MACs` the same of their MACs. Columns name the runtime and the batch size: eager,
`torch.compile` with its default backend, onnxruntime on the CPU. `round_to`: widths that were narrowed are a multiple
of it. An empty cell was not measured. The times themselves are in the CSV file.

Fewer MACs are less time only where MACs are what takes the time. Element-wise work, normalisation and memory traffic
shrink with the widths of the activations and not with their product, and depthwise convolutions are bound by memory.
Widths that are no multiple of the vector length waste part of each vector. At batch 1 the overhead of every call
weighs most."""


def main(
    models: Annotated[str, typer.Option(help="Names, separated by commas.")] = ",".join(MODELS),
    variants: Annotated[str, typer.Option(help="Multiples for round_to, or latency, by commas.")] = ",".join(VARIANTS),
    runtimes: Annotated[str, typer.Option(help="Runtimes, separated by commas.")] = ",".join(RUNTIMES),
    ratio: Annotated[float, typer.Option(help="Fraction to remove.")] = 0.5,
    size: Annotated[int, typer.Option(help="Pixels along each side of an image.")] = 224,
    seconds: Annotated[float, typer.Option(help="How long the forms of a network are timed together, at least.")] = 4.0,
    threads: Annotated[int, typer.Option(help="Threads inside a call.")] = 1,
    prepare_only: Annotated[bool, typer.Option(help="Prune, export and compile, and time nothing.")] = False,
    time_only: Annotated[bool, typer.Option(help="Time what was prepared.")] = False,
    afresh: Annotated[bool, typer.Option(help="Forget the times measured so far.")] = False,
    work: Annotated[Path, typer.Option(help="Folder for what is prepared.")] = Path("build/latency"),
    out: Annotated[Path, typer.Option(help="Table to write or go on with; .md beside it.")] = Path(
        "benchmarks/results/latency.csv"
    ),
) -> None:
    """Prepare networks before and after, then time them; a sweep that was stopped goes on where it was."""
    networks, chosen, ways = models.split(","), variants.split(","), runtimes.split(",")
    common = {"work": str(work), "size": size, "threads": threads}
    if not time_only:
        _prepare(networks, chosen, ways, ratio, common, work)
    if prepare_only:
        return
    if afresh:
        out.unlink(missing_ok=True)
    table = ResumableTable(out, ["model", "variants", *(f"{v}_ms" for v in (ORIGINAL, *VARIANTS)), "calls", "threads"])
    ready = {f"{n}@{r}@{b}": _ready(work, n, chosen, r, b) for n in networks for r in ways for b in BATCHES}
    ready = {name: found for name, found in ready.items() if len(found) > 1}
    for name in [name for name, found in ready.items() if name in table.rows and _others(table.rows[name], found)]:
        del table.rows[name]
    arguments = {**common, "seconds": seconds, "forms": ready}
    Sweep(time_forms, lambda outcome: outcome.fields, _LIMIT_SECONDS, arguments).run(list(ready), table)
    note = _NOTE.format(threads=f"{threads} thread{'s' * (threads > 1)}", size=size)
    write_page(out.with_suffix(".md"), "Latency", note, _gains(table, work, networks, chosen, ways))


def _prepare(
    networks: list[str],
    variants: list[str],
    runtimes: list[str],
    ratio: float,
    common: Mapping[str, object],
    work: Path,
) -> None:
    work.mkdir(parents=True, exist_ok=True)
    table = ResumableTable(work / "prepared.csv", ["model", "macs_gain", "compiled", "predicted", "failure"])
    names = [f"{name}@{variant}" for name, variant in forms(networks, variants)]
    Sweep(prepare, _row, _LIMIT_SECONDS, {**common, "ratio": ratio}).run(names, table, again=True)
    if "compile" in runtimes:
        names = [f"{name}@{v}@{batch}" for name, v in forms(networks, variants) for batch in BATCHES]
        Sweep(compile_once, _row, _LIMIT_SECONDS, common).run(names, table, again=True)


def _row(outcome: Outcome) -> Mapping[str, object]:
    return {**outcome.fields, "failure": outcome.failure}


def _ready(work: Path, network: str, variants: list[str], runtime: str, batch: int) -> list[str]:
    """The forms of a network that are prepared for a runtime."""
    table = ResumableTable(work / "prepared.csv", ["model", "macs_gain", "compiled", "predicted", "failure"])
    found = [v for v in (ORIGINAL, *variants) if Place(work, network, v).about]
    if runtime != "compile":
        return found
    return [v for v in found if table.rows.get(f"{network}@{v}@{batch}", {}).get("compiled")]


def _others(row: Mapping[str, str], variants: list[str]) -> bool:
    return row["variants"].split() != variants


def _gains(table: ResumableTable, work: Path, networks: list[str], variants: list[str], runtimes: list[str]) -> str:
    """A row for each network and variant: how many times fewer MACs, and how many times faster by each runtime."""
    places = [(runtime, batch) for runtime in runtimes for batch in BATCHES]
    rows = []
    for network in networks:
        for variant in variants:
            cells = [_gain(table.rows.get(f"{network}@{r}@{b}", {}), variant) for r, b in places]
            macs = Place(work, network, variant).about.get("macs_gain")
            rows.append([network, variant, "" if macs is None else f"{macs:.2f}", *cells])
    return markdown_table(["network", "round_to", "MACs", *(f"{runtime} {batch}" for runtime, batch in places)], rows)


def _gain(row: Mapping[str, str], variant: str) -> str:
    before, after = row.get(f"{ORIGINAL}_ms", ""), row.get(f"{variant}_ms", "")
    return as_text(f"{float(before) / float(after):.2f}") if before and after else ""


if __name__ == "__main__":
    typer.run(main)
