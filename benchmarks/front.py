"""Trained networks before and after the plain call and after a short training: the table that README begins with.

CIFAR ResNets come with their weights, the others are trained as in :mod:`benchmarks.small_trained`. The short training
needs no labels: the pruned network learns to give the original's outputs.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

import fxprune
from benchmarks.cifar import cifar_model, load_images, shared_file
from benchmarks.small_trained import TASKS, Task, trained
from benchmarks.tables import ResumableTable, write_page
from fxprune.capture.samples import Sample
from fxprune.cli.sources import load_weights
from fxprune.cost.measuring import timed_alternately
from fxprune.distillation import SoftTargets
from fxprune.saving.formats import FORMATS, onnx_session

RESNETS = ("cifar_resnet20", "cifar_resnet56")
COLUMNS = (
    "network",
    "measure",
    "MACs",
    "original",
    "plain call",
    "distilled after it",
    "onnxruntime, ms",
    "file, kB",
)
_BATCH = 8

Outputs = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Unlabelled:
    """Shuffled batches of images, half of each mirrored, without labels. They are not shifted: not every network has
    learned what the edges of a shifted image look like.
    """

    images: Tensor
    size: int = 128

    def __len__(self) -> int:
        return len(self.images) // self.size

    def __iter__(self) -> Iterator[Tensor]:
        for rows in torch.randperm(len(self.images))[: len(self) * self.size].split(self.size):
            mirrored = torch.rand(len(rows), 1, 1, 1) < 0.5
            yield torch.where(mirrored, self.images[rows].flip(3), self.images[rows])


def away(student: Outputs, teacher: Outputs, _: object) -> Tensor:
    """The divergence from the teacher's classes, which are the first output, and the squared difference of the others,
    relative to the teacher's squares.
    """
    (classes, *others), (wanted, *rest) = ([o] if isinstance(o, Tensor) else o for o in (student, teacher))
    apart = [(s - t).square().mean() / t.square().mean() for s, t in zip(others, rest, strict=True)]
    return torch.stack([SoftTargets(temperature=1.0)(classes, wanted, None)["soft"], *apart]).sum()


def runtimes(networks: Sequence[nn.Module], images: Tensor, seconds: float = 4.0) -> tuple[list[float], list[float]]:
    """Median milliseconds of a call in onnxruntime, networks in turns, and the sizes of their files in kB."""
    calls: list[Callable[[], object]] = []
    sizes = []
    with tempfile.TemporaryDirectory() as folder:
        for number, network in enumerate(networks):
            file = Path(folder) / f"{number}.onnx"
            FORMATS["onnx"].write(network, [Sample.from_input(x) for x in (images, images[:2])], file)
            session = onnx_session(file, torch.get_num_threads())
            inputs = {session.get_inputs()[0].name: images.numpy()}
            calls.append(lambda session=session, inputs=inputs: session.run(None, inputs))  # type: ignore[misc]
            sizes.append(sum(part.stat().st_size for part in Path(folder).glob(f"{number}.onnx*")) / 1000)
        times = timed_alternately(calls, seconds)
    return [1000 * statistics.median(found) for found in times], sizes


def row(name: str, model: nn.Module, task: Task, sets: dict[str, tuple[Tensor, Tensor]], steps: int) -> dict[str, str]:
    """One network's row, from trained to cut to trained again."""
    calibration, training, tests = sets["calibration"][0], sets["training"], sets["tests"]
    pruned = fxprune.compile(model, calibration[:2], 0.5, calibration=list(calibration.split(256)))
    report = fxprune.report(pruned)
    learned = fxprune.distill(pruned, model, Unlabelled(training[0]), steps=steps, loss=away, optimizer="adamw")
    scores = [task.score(network.eval(), *tests) for network in (model, pruned, learned.network)]
    times, sizes = runtimes([model, pruned], calibration[:_BATCH])
    macs = f"{report.macs_before / 1e6:.1f} M to {report.macs_after / 1e6:.1f} M"
    cells = [name, task.measure, macs, *(f"{score:.1f}" for score in scores)]
    cells += ["{:.2f} to {:.2f}".format(*times), "{:.0f} to {:.0f}".format(*sizes)]
    return dict(zip(COLUMNS, cells, strict=True))


def networks(
    names: Sequence[str], images: Tensor, labels: Tensor, epochs: int
) -> Iterator[tuple[str, nn.Module, Task]]:
    """Each name's trained network in eval mode, and what it is trained and judged by."""
    for name in names:
        if name not in TASKS:
            model = cifar_model(name)
            load_weights(model, shared_file("weights", f"{name}.safetensors"))
            yield name, model.eval(), Task(lambda name=name: cifar_model(name))  # type: ignore[misc]
            continue
        yield name, trained(TASKS[name], *TASKS[name].data(images, labels), epochs), TASKS[name]


_NOTE = """What was measured: trained networks before and after the plain call at half of the MACs,
`fxprune.compile(model, x, 0.5, calibration=batches)`, with 1,024 images without labels; then after
`fxprune.distill(pruned, model, images, steps={steps})`, also without labels: batches of 128 of {train} images, half of
them mirrored; the loss is the divergence from the original's classes (and the squared difference from its boxes), the
optimiser AdamW at its default rate.

To repeat it: `python -m benchmarks.front`.

How to read it: measures are in percent, on 2,000 test images. Milliseconds are for a batch of {batch} on {threads}
thread."""


def main(
    network: Annotated[list[str] | None, typer.Option(help="One of the rows; may be repeated.")] = None,
    train: Annotated[int, typer.Option(help="Training images, spread over the classes.")] = 20000,
    epochs: Annotated[int, typer.Option(help="Of the networks that come without weights.")] = 12,
    steps: Annotated[int, typer.Option(help="Of the short training.")] = 300,
    out: Annotated[Path, typer.Option(help="Folder of the table and the page.")] = Path("benchmarks/results"),
) -> None:
    """Measure what is not in the table yet, and write the page."""
    path = shared_file("data", "cifar10.zip")
    splits = {"training": ("train", train), "tests": ("test", 2000), "calibration": ("train", 1024)}
    loaded = {name: load_images(path, *which) for name, which in splits.items()}
    table = ResumableTable(out / "front.csv", COLUMNS)
    wanted = [name for name in network or (*RESNETS, *TASKS) if name not in table.rows]
    for name, model, task in networks(wanted, *loaded["training"], epochs):
        table.add(row(name, model, task, {kind: task.data(*found) for kind, found in loaded.items()}, steps))
    note = _NOTE.format(steps=steps, train=train, batch=_BATCH, threads=torch.get_num_threads())
    write_page(out / "front.md", "Trained networks before and after", note, table.markdown())


if __name__ == "__main__":
    typer.run(main)
