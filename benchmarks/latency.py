"""How many times faster networks are with half of their MACs, beside how many times fewer MACs they have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
import typer

import fxprune
from benchmarks.harness.processes import Outcome, Record
from benchmarks.harness.sweeping import Sweep
from benchmarks.harness.tables import ResumableTable, write_page
from benchmarks.networks import find_network
from fxprune.timing import RUNTIMES, Latency, measure_latency

MODELS = ("resnet50", "mobilenet_v2", "efficientnet_b0", "convnext_tiny", "vit_b_16", "deeplabv3_resnet50")
ROUND_TO = (1, 8, 16)
BATCHES = (1, 8)
_MEASURED = [f"{runtime}_{batch}" for runtime in RUNTIMES for batch in BATCHES]
COLUMNS = ["network", "round_to", "macs_gain", *(f"{name}_gain" for name in _MEASURED)]
COLUMNS += [f"{name}_{which}_ms" for name in _MEASURED for which in ("original", "pruned")] + ["threads", "failure"]
_SHOWN = [name for name in COLUMNS if not name.endswith("_ms")]

_NOTE = """torchvision's networks with random weights, pruned globally by magnitude to the stated share of their MACs.
The original and the pruned network run in turns in one process; a gain is the original's median time over the pruned
network's, `macs_gain` the same of their MACs. Columns name the runtime and the batch size: eager, `torch.compile` with
its default backend, onnxruntime on the CPU, each with the number of threads stated. `round_to`: widths that were
narrowed are a multiple of it. An empty cell was not measured.

Fewer MACs are less time only where MACs are what takes the time. Element-wise work, normalisation and memory traffic
shrink with the widths of the activations and not with their product, and depthwise convolutions are bound by memory.
Widths that are no multiple of the vector length waste part of each vector. At batch 1 the overhead of every call weighs
most."""


def check(record: Record, model: str, ratio: float, runtimes: list[str], seconds: float) -> None:
    """One row: ``model`` is NAME@ROUND_TO."""
    name, _, round_to = model.partition("@")
    network = find_network("torchvision", name)
    pruned = fxprune.compile(network.model, network.sample, ratio, round_to=int(round_to), verify=False)
    report = fxprune.report(pruned)
    record(network=name, round_to=int(round_to), macs_gain=report.macs_before / report.macs_after)
    record(threads=torch.get_num_threads())
    measured = measure_latency(
        network.model, pruned.eval(), network.sample, runtimes=runtimes, batches=BATCHES, seconds=seconds
    )
    for latency in measured:
        record(**_cells(latency))


def _cells(latency: Latency) -> dict[str, object]:
    name = f"{latency.runtime}_{latency.batch}"
    if latency.failure:
        return {"failure": f"{name}: {latency.failure}"}
    times = {"original": latency.original, "pruned": latency.pruned}
    return {f"{name}_gain": latency.gain, **{f"{name}_{which}_ms": 1e3 * time for which, time in times.items()}}


def to_row(outcome: Outcome) -> Mapping[str, object]:
    """The cells of one outcome."""
    return {**outcome.fields, "failure": outcome.failure}


def main(
    models: Annotated[str, typer.Option(help="Names, separated by commas.")] = ",".join(MODELS),
    round_to: Annotated[str, typer.Option(help="Multiples, separated by commas.")] = ",".join(map(str, ROUND_TO)),
    runtimes: Annotated[str, typer.Option(help="Runtimes, separated by commas.")] = ",".join(RUNTIMES),
    ratio: Annotated[float, typer.Option(help="Fraction of MACs to remove.")] = 0.5,
    seconds: Annotated[float, typer.Option(help="How long each pair is timed.")] = 3.0,
    limit_seconds: Annotated[float, typer.Option(help="Time that a network may take.")] = 1800,
    again: Annotated[bool, typer.Option(help="Repeat those that failed.")] = False,
    out: Annotated[Path, typer.Option(help="Table to write or go on with; .md beside it.")] = Path(
        "benchmarks/results/latency.csv"
    ),
) -> None:
    """Time networks before and after; a sweep that was stopped goes on where it was."""
    table = ResumableTable(out, ["model", *COLUMNS])
    arguments = {"ratio": ratio, "runtimes": runtimes.split(","), "seconds": seconds}
    names = [f"{name}@{multiple}" for name in models.split(",") for multiple in round_to.split(",")]
    Sweep(check, to_row, limit_seconds, arguments).run(names, table, again=again)
    write_page(out.with_suffix(".md"), "Latency", _NOTE, table.markdown(_SHOWN))


if __name__ == "__main__":
    typer.run(main)
