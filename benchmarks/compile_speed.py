"""How long the pass and its proof take, beside torch-pruning, and how much memory the pass takes."""

from __future__ import annotations

import copy
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import typer
from torch import fx, nn
from torch.profiler import ProfilerActivity, profile

import fxprune
from benchmarks import rivals
from benchmarks.harness import (
    Outcome,
    Record,
    Sweep,
    Task,
    TimeLimitReached,
    ToRow,
    failure_text,
    peak_memory,
    reset_peak_memory,
    resident_memory,
    time_limit,
)
from benchmarks.networks import COMMON, Network, find_network
from benchmarks.tables import ResumableTable, write_page


def warm_up() -> Network:
    """Compile a tiny network, so that imports and everything that is made once is there; the network comes back."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    sample = torch.randn(1, 3, 8, 8)
    fxprune.compile(model, sample, 0.2, verify=False)
    return Network(model, sample, sample)


T = TypeVar("T")


class Clock:
    """Counts the processor's seconds of calls until one fails or takes too long; later ones are then not made.

    Attributes:
        failure: why the last call gave nothing, or "".
    """

    def __init__(self, limit_seconds: float) -> None:
        self.failure = ""
        self._limit = limit_seconds
        self._seconds: list[float] = []

    def run(self, call: Callable[[], T]) -> T | None:
        """The result of ``call``, or None where it, or one before it, failed."""
        if self.failure:
            return None
        started = time.process_time()
        try:
            with time_limit(self._limit, of_processor=True):
                result = call()
        except TimeLimitReached as error:
            self.failure = str(error)
            return None
        except Exception as error:  # another library's failure is a result, not an error of the measurement
            self.failure = failure_text(error)
            return None
        self._seconds.append(time.process_time() - started)
        return result

    @property
    def median(self) -> float | None:
        """Of the calls that came to their end."""
        return statistics.median(self._seconds) if self._seconds else None


MEMORY_COLUMNS = ("model", "model_mib", "process_mib", "process_share", "tensors_mib", "tensors_share", "failure")


def measure_memory(record: Record, library: str, model: str, ratio: float) -> None:
    """Compile twice: once to see the process grow, once to count tensor allocations."""
    network = find_network(library, model)
    warm_up()
    own = sum(t.numel() * t.element_size() for t in _distinct_tensors(network.model))
    record(model_mib=own / 2**20)

    def compile_it() -> object:
        return fxprune.compile(network.model, network.sample, ratio, verify=False)

    grown = process_growth(compile_it)
    record(process_mib=grown / 2**20, process_share=grown / own)
    allocated = tensor_peak(compile_it)
    record(tensors_mib=allocated / 2**20, tensors_share=allocated / own)


def process_growth(call: Callable[[], object]) -> int:
    """How far the resident size rises above where it is now while ``call`` runs, its result included, in bytes."""
    gc.collect()
    before = resident_memory()
    reset_peak_memory()
    result = call()
    peak = peak_memory()
    del result
    return max(0, peak - before)


def tensor_peak(call: Callable[[], object]) -> int:
    """The most bytes that tensors allocated during ``call`` hold at a time, its result included."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as profiler:
        result = call()
    del result
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes: list[tuple[int, int]] = sorted(
        (event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"
    )
    return max(itertools.accumulate((change for _, change in changes), initial=0))


def _distinct_tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def memory_row(outcome: Outcome) -> dict[str, Any]:
    """The cells of one outcome."""
    return outcome.fields | {"failure": outcome.failure}


PASSES = ("capture", "analyze", "score", "plan", "rewrite")
COLUMNS = ["model", "nodes", "channel_ratio", "whole_s", "proof_s", "pass_s", "torch_pruning_s", "whole_ratio"]
COLUMNS += ["pass_ratio", "ms_per_node", *PASSES, "proven", "torch_pruning_failure", "failure"]


def measure_speed(
    record: Record, library: str, model: str, ratio: float, rounds: int, limit_seconds: float, proof: bool
) -> None:
    """Time the pass, the whole call with its proof, and the other library on one network, in turn."""
    network = find_network(library, model)
    torch.set_num_threads(1)
    _warm_up_both()
    ours, whole, theirs = Clock(limit_seconds), Clock(limit_seconds), Clock(limit_seconds)
    channel_ratio = ratio
    passes: list[Mapping[str, float]] = []
    for _ in range(rounds):
        pruned = ours.run(lambda: fxprune.compile(network.model, network.sample, ratio, verify=False))
        if pruned is not None:
            channel_ratio = _removed_channels(pruned)
            passes.append(fxprune.report(pruned).seconds)
            record(nodes=len(pruned.graph.nodes), channel_ratio=channel_ratio, pass_s=ours.median)
        _time_torch_pruning(theirs, network, channel_ratio)
        record(failure=ours.failure, torch_pruning_s=theirs.median, torch_pruning_failure=theirs.failure)
        proven = whole.run(lambda: fxprune.compile(network.model, network.sample, ratio)) if proof else None
        if proven is not None:
            report = fxprune.report(proven)
            way = "node by node" if report.proof is not None and report.proof.nodes else "as a whole"
            record(whole_s=whole.median, proof_s=(whole.median or 0) - (ours.median or 0), proven=way)
        elif proof:
            record(failure=f"with the proof: {whole.failure}")
    # The report has seconds of the clock, which other processes take their share of.
    shares = [{name: p[name] / sum(p.values()) for name in PASSES} for p in passes]
    record(**{name: statistics.median(s[name] for s in shares) * (ours.median or 0) for name in PASSES if shares})


def _time_torch_pruning(clock: Clock, network: Network, channel_ratio: float) -> None:
    if not clock.failure:
        cut = copy.deepcopy(network.model)
        clock.run(lambda: rivals.prune(cut, network.sample, channel_ratio))


def _removed_channels(pruned: fx.GraphModule) -> float:
    """The share of all channels of all groups that went."""
    groups = fxprune.report(pruned).groups
    return 1 - sum(g.after for g in groups) / sum(g.before for g in groups)


def _warm_up_both() -> None:
    """Run both libraries once on a tiny network, so that no measurement pays for imports and first calls."""
    tiny = warm_up()
    fxprune.compile(tiny.model, tiny.sample, 0.2)
    # Where torch-pruning is not installed, its column says so.
    Clock(60).run(lambda: rivals.prune(tiny.model, tiny.sample, 0.2))


def speed_row(outcome: Outcome) -> dict[str, Any]:
    """The cells of one outcome."""
    fields = dict(outcome.fields)
    theirs = fields.get("torch_pruning_s")
    for name in ("whole", "pass"):
        if theirs and fields.get(f"{name}_s"):
            fields[f"{name}_ratio"] = fields[f"{name}_s"] / theirs
    if fields.get("pass_s") and fields.get("nodes"):
        fields["ms_per_node"] = 1000 * fields["pass_s"] / fields["nodes"]
    return fields | {"failure": outcome.failure}


_RESULTS = Path("benchmarks/results")
_NOTE = """What was measured: the time and the memory of the pass, on networks with random weights, beside
torch-pruning.

To repeat it: `python -m benchmarks.compile_speed`.

How to read it: the text above each table explains its columns. Less is better everywhere."""
_SPEED = """Seconds of processor time of the default call (`whole_s`, at a ratio of MACs), of the same call without a
proof (`pass_s`; `proof_s` is the difference), and of torch-pruning (its dependency graph plus one step at the same
ratio of channels, by the recipe of its documentation): medians of rounds in which the three take turns in one process
of one thread, with a process for each network. `whole_ratio` and `pass_ratio` are multiples of torch-pruning's time:
below 1 is faster. torch-pruning cuts in place, on copies that are made while the clock stands. Both have run once on a
tiny network before. `nodes` are those of the pruned graph, `capture` to `rewrite` are parts of `pass_s`, and `proven`
says which proof was run. The sample is one input at the size of the published weights."""
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
    Part("networks", _SPEED, measure_speed, speed_row, COLUMNS),
    Part("depths", _DEPTHS, measure_speed, speed_row, COLUMNS),
    Part("memory", _MEMORY, measure_memory, memory_row, MEMORY_COLUMNS),
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
    write_page(folder / "compile_speed.md", "Compile speed", _NOTE, *sections)


if __name__ == "__main__":
    typer.run(main)
