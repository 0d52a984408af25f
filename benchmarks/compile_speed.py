"""How long the pass takes beside torch-pruning, how time grows with depth, and how much memory the pass needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.harness.processes import Task
from benchmarks.harness.sweeping import Sweep, ToRow
from benchmarks.harness.tables import ResumableTable, write_page
from benchmarks.networks.torchvision_networks import COMMON
from benchmarks.speed import memory, timing

_RESULTS = Path("benchmarks/results")
_SPEED = """Seconds of the whole pass (`fxprune.compile(..., verify=False)` at a ratio of MACs) and of torch-pruning
(building its dependency graph plus one step at the same ratio of channels, by the recipe of its documentation):
medians of rounds in which the two take turns in one process, a process for each network. Copies that torch-pruning
cuts in place are made outside the clock; both have run once on a tiny network before. `nodes` are those of the pruned
graph, `capture` to `rewrite` the parts of `fxprune_s`. The proof, `proof_s`, is timed once, apart. The sample is one
input at the size of the published weights; weights are random."""
_DEPTHS = "The same for CIFAR ResNets of growing depth. Where cost grows linearly, `ms_per_node` is constant."
_MEMORY = """Memory of the pass without proof, beyond the model itself and including the pruned network. `process`:
growth of the resident size to its peak, in a fresh process after a tiny network was compiled, from the high-water mark
that the kernel keeps. `tensors`: the most that tensors allocated meanwhile hold at a time, from torch's memory
profiler. Shares are of the bytes of the model's own parameters and buffers."""


@dataclass(frozen=True)
class Part:
    """A table of the page."""

    name: str
    note: str
    task: Task
    to_row: ToRow
    columns: Sequence[str]

    def table(self, folder: Path) -> ResumableTable:
        """Its file."""
        return ResumableTable(folder / f"compile_speed_{self.name}.csv", self.columns)


_PARTS = (
    Part("networks", _SPEED, timing.measure_speed, timing.speed_row, timing.COLUMNS),
    Part("depths", _DEPTHS, timing.measure_speed, timing.speed_row, timing.COLUMNS),
    Part("memory", _MEMORY, memory.measure_memory, memory.memory_row, memory.COLUMNS),
)


def main(
    models: Annotated[str, typer.Option(help="torchvision names, separated by commas; common ones by default.")] = "",
    depths: Annotated[str, typer.Option(help="Time CIFAR ResNets of these depths instead, as 20,56,110.")] = "",
    measure_memory: Annotated[bool, typer.Option("--memory", help="Measure memory instead of time.")] = False,
    ratio: Annotated[float, typer.Option(help="Fraction of MACs to remove.")] = 0.5,
    rounds: Annotated[int, typer.Option(help="How often each call is timed.")] = 3,
    limit_seconds: Annotated[float, typer.Option(help="Time that one call may take.")] = 120,
    proof: Annotated[bool, typer.Option(help="Time the proof, too.")] = True,
    again: Annotated[bool, typer.Option(help="Repeat those that failed.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the tables and of compile_speed.md.")] = _RESULTS,
) -> None:
    """Measure, and write all that has been measured to one page; a run that was stopped goes on where it was."""
    part = _PARTS[2 if measure_memory else 1 if depths else 0]
    library = "cifar" if depths else "torchvision"
    arguments: dict[str, Any] = {"library": library, "ratio": ratio}
    if not measure_memory:
        arguments |= {"rounds": rounds, "limit_seconds": limit_seconds, "proof": proof}
    names = [f"cifar_resnet{d}" for d in depths.split(",")] if depths else models.split(",") if models else COMMON
    # What one call may take holds inside the process; the process itself ends a call that cannot be interrupted.
    sweep = Sweep(part.task, part.to_row, (2 * rounds + 2) * limit_seconds, arguments)
    sweep.run(names, part.table(out), again=again)
    write_pages(out)


def write_pages(folder: Path) -> None:
    """The page of all tables that have rows."""
    tables = [(part, part.table(folder)) for part in _PARTS if (folder / f"compile_speed_{part.name}.csv").exists()]
    sections = [f"## {part.name.capitalize()}\n\n{part.note}\n\n{table.markdown()}" for part, table in tables]
    write_page(folder / "compile_speed.md", "Compile speed", "Time and memory of the pass.", *sections)


if __name__ == "__main__":
    typer.run(main)
