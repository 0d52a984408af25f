"""A trained CIFAR ResNet, pruned and measured on test images: accuracy, MACs, and the error of the proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

import fxprune
from benchmarks.cifar import accuracy, cifar_model, load_images, shared_file
from benchmarks.tables import Cells, markdown_table, write_page
from fxprune.cli.sources import load_weights
from fxprune.proof import Proof

_COLUMNS = (
    "asked",
    "achieved MACs",
    "parameters removed",
    "accuracy before",
    "after",
    "proof error",
    "proof",
    "streams",
)
# The first convolution that writes to each of the three residual streams.
_STREAMS = ("conv1.weight", "layer2.0.conv2.weight", "layer3.0.conv2.weight")
# All that a CIFAR ResNet has to keep: the colours it reads and the classes it names.
_ENDS = {"conv1.weight dim 1", "linear.weight dim 0"}


class PinnedStreamError(RuntimeError):
    """A width inside the network was pinned, such as that of a residual stream with an option-A shortcut."""


@dataclass(frozen=True)
class Measured:
    """One compilation: fractions of MACs and parameters removed, accuracies, the proof, widths of the streams."""

    asked: float
    macs_removed: float
    parameters_removed: float
    accuracy_before: float
    accuracy_after: float
    proof: Proof
    streams: tuple[int, ...]

    def cells(self) -> Cells:
        """A row of the table."""
        percents = (self.macs_removed, self.parameters_removed, self.accuracy_before, self.accuracy_after)
        proof = f"{self.proof.method}, {self.proof.dtype}"
        streams = " ".join(str(width) for width in self.streams)
        shown = [f"{value:.2%}" for value in percents]
        return [f"{self.asked:.0%}", *shown, f"{self.proof.relative_error:.1e}", proof, streams]


def measure(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, ratios: Sequence[float], scope: str = "global"
) -> list[Measured]:
    """Compile at each ratio of MACs and measure accuracy; nothing is trained after pruning.

    Raises:
        PinnedStreamError: a width other than the input's and the output's is pinned.
    """
    before = accuracy(model, images, labels)
    found = []
    for ratio in ratios:
        pruned = fxprune.compile(model, images[:2], ratio, scope=scope, round_to=1)
        report = fxprune.report(pruned)
        check_only_ends_are_pinned(report)
        assert report.proof is not None
        assert report.plan is not None
        streams = tuple(pruned.get_parameter(name).shape[0] for name in _STREAMS)
        parameters = 1 - report.parameters_after / report.parameters_before
        after = accuracy(pruned, images, labels)
        found.append(Measured(ratio, report.achieved, parameters, before, after, report.proof, streams))
    return found


def check_only_ends_are_pinned(report: fxprune.Report) -> None:
    """Make sure that every width but the input's and the output's can be pruned.

    Raises:
        PinnedStreamError: another one is pinned; the message gives the reasons.
    """
    inner = [row for row in report.pinned if row.name not in _ENDS]
    if inner:
        reasons = "; ".join(f"{row.name}: {row.reason} ({row.where})" for row in inner)
        raise PinnedStreamError(f"{len(inner)} widths inside the network are pinned: {reasons}")


_NOTE = """What was measured: the accuracy of `{model}` with trained weights on {images} test images, before and after
{scope} magnitude pruning in one shot, without training or recovery.

To repeat it: `python -m benchmarks.cifar_resnet --model {model}`.

How to read it: *MACs* are the multiply-accumulates of convolution, linear and matmul. *Proof error* is the largest
relative difference from the masked original. *Streams* are the widths that are left of the three residual streams,
before 16, 32 and 64: their option-A shortcuts (strided slice, channel pad) pin nothing."""


def main(
    data: Annotated[
        Path | None, typer.Option(help="Folder or zip file of test images, .../test/CLASS/NAME.jpg.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Trained weights, .safetensors.")] = None,
    model: Annotated[str, typer.Option(help="cifar_resnetDEPTH.")] = "cifar_resnet20",
    images: Annotated[
        int | None, typer.Option(help="How many test images, spread over the classes; all by default.")
    ] = None,
    ratio: Annotated[list[float] | None, typer.Option(help="Fraction of MACs to remove; may be repeated.")] = None,
    scope: Annotated[str, typer.Option(help='"global" or "uniform".')] = "global",
    out: Annotated[Path | None, typer.Option(help="Markdown file to write.")] = None,
) -> None:
    """Prune a trained CIFAR ResNet and print accuracy before and after, achieved MACs and the error of the proof."""
    network = cifar_model(model)
    load_weights(network, weights or shared_file("weights", f"{model}.safetensors"))
    pixels, labels = load_images(data or shared_file("data", "cifar10.zip"), "test", images)
    found = measure(network.eval(), pixels, labels, ratio or [0.3, 0.5, 0.7], scope)
    table = markdown_table(_COLUMNS, [row.cells() for row in found])
    print(table)
    if out is not None:
        note = _NOTE.format(model=model, images=len(labels), scope=scope)
        write_page(out, model, note, table)


if __name__ == "__main__":
    typer.run(main)
