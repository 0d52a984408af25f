"""How long a criterion's pass over calibration data takes, beside the network's forward pass alone.

Processor time is measured, on one thread: it says more than a clock where other programs run too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import torchvision
import typer
from torch import Tensor, nn

import fxprune
from benchmarks.criteria_accuracy import CRITERIA
from benchmarks.tables import markdown_table, write_page
from fxprune.calibration import Calibration, Collector
from fxprune.capture.samples import Sample
from fxprune.criteria import judge

_DEFAULT = (
    "magnitude, group norm",
    "slimming",
    "lamp",
    "fpgm",
    "information_fusion",
    "filter_similarity",
    "apoz",
    "mean_activation",
    "feature_entropy",
    "feature_entropy, histogram",
    "parallel",
    "taylor",
    "taylor_activations",
    "taylor, each weight",
    "thinet",
    "feature_distance",
    "multi_source, rank",
    "reconstruction",
    "hrank",
    "hessian",
    "chip",
    "multi_source",
)


def measure(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]], names: list[str], rounds: int
) -> dict[str, tuple[float, float]]:
    """Processor seconds of one pass, and how many forward passes that is: medians of rounds with both in turns."""
    sample = batches[0][0][:2]
    graph = fxprune.analyze(model, sample)
    tensors = model.state_dict()

    @torch.no_grad()
    def forward() -> None:
        for images, _ in batches:
            model(images)

    def judged(name: str) -> None:
        data = Calibration(batches, Sample.from_input(sample))
        judge(CRITERIA[name], graph, tensors, Collector(graph, model, data))

    forward()
    found = {}
    for name in names:
        pairs = [(_seconds(lambda: judged(name)), _seconds(forward)) for _ in range(rounds)]  # noqa: B023
        found[name] = statistics.median(p for p, _ in pairs), statistics.median(p / f for p, f in pairs)
        print(f"{name}: {found[name][0]:.2f} s, {found[name][1]:.2f} times a forward pass", flush=True)
    return found


def _seconds(run: Callable[[], None]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


_NOTE = """What was measured: the time of all that a criterion does with calibration data (a private copy of the
network, recordings, statistics, scores), on `{model}` with random weights and {images} random images of {size} pixels,
{batch_size} in a batch, with {threads} thread(s). Processor time; medians of {rounds} round(s).

To repeat it: `python -m benchmarks.calibration_speed --model {model} --images {images} --rounds {rounds}`.

How to read it: *times a forward pass* is relative to a forward pass without gradients, timed in turns with it. Criteria
of weights alone read no data; all others read it once, and `multi_source` runs the network with masks, nine times for
each group, in a second pass."""


def main(
    model: Annotated[str, typer.Option(help="A classifier of torchvision.")] = "resnet50",
    images: Annotated[int, typer.Option(help="Images, in batches of the batch size.")] = 32,
    batch_size: Annotated[int, typer.Option(help="Images in a batch.")] = 16,
    size: Annotated[int, typer.Option(help="Pixels of a side.")] = 224,
    rounds: Annotated[int, typer.Option(help="Passes of each kind, in turns.")] = 3,
    criterion: Annotated[list[str] | None, typer.Option(help="Names of the table of criteria_accuracy.")] = None,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Markdown file to write.")] = None,
) -> None:
    """Print seconds of each criterion's pass, and how many forward passes that is. Scoring is part of it."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = torchvision.models.get_model(model, weights=None).eval()
    x, y = torch.randn(images, 3, size, size), torch.randint(0, 1000, (images,))
    batches = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
    found = measure(network, batches, criterion or list(_DEFAULT), rounds)
    rows = [[name, f"{seconds:.2f}", f"{ratio:.2f}"] for name, (seconds, ratio) in found.items()]
    table = markdown_table(["criterion", "seconds", "times a forward pass"], rows)
    print(table)
    if out is not None:
        about = {"model": model, "images": images, "size": size, "batch_size": batch_size}
        note = _NOTE.format(**about, threads=threads, rounds=rounds)
        write_page(out, f"Calibration on {model}", note, table)


if __name__ == "__main__":
    typer.run(main)
