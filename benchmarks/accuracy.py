"""Accuracy without training: what is left after the cut, after new batch norm statistics, after reconstruction."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

import fxprune
from benchmarks.cifar.accuracy import accuracy
from benchmarks.cifar.files import shared_file
from benchmarks.cifar.images import load_images
from benchmarks.cifar.resnet import cifar_model
from benchmarks.harness.tables import Cells, markdown_table, write_page
from benchmarks.rivals.inner_pruning import multiply_accumulates, pruned_inside, recalibrate
from fxprune.model_sources import load_weights

_COLUMNS = ("method", "MACs removed", "cut only", "batch norm recalibrated", "reconstructed")
_OURS = (("reconstruction", "reconstruction", "inner"), ("magnitude", "uniform", "inner"))
_RIVALS = (("magnitude", False), ("magnitude", True), ("fpgm", False), ("fpgm", True))


class Setting:
    """A trained network, test images, and calibration images without their labels."""

    def __init__(self, network: nn.Module, data: Path, tests: int, samples: int) -> None:
        self.network = network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.images, self.labels = load_images(data, "test", tests)
        self.images = self.images.contiguous(memory_format=torch.channels_last)
        given = load_images(data, "train", samples)[0].contiguous(memory_format=torch.channels_last)
        self.calibration = list(given.split(256))
        self.sample = given[:2]

    def shown(self, network: nn.Module) -> str:
        """The accuracy of a network."""
        return f"{accuracy(network, self.images, self.labels):.2%}"

    def ours(self, ratio: float, criterion: str, scope: str, residual: str) -> Cells:
        """A row of the table."""
        options = {"criterion": criterion, "scope": scope, "residual": residual, "calibration": self.calibration}
        cut = fxprune.compile(self.network, self.sample, ratio, **options)  # type: ignore[arg-type]
        report = fxprune.report(cut)
        found = [
            fxprune.recover(cut, self.network, how, calibration=self.calibration)
            for how in ("batchnorm", "reconstruct")
        ]
        name = f"fxprune, {criterion}, {scope} widths, residual {residual}"
        return [name, f"{report.achieved:.2%}", *(self.shown(network) for network in (cut, *found))]

    def theirs(self, ratio: float, importance: str, everywhere: bool) -> Cells:
        """A row of the table for torch-pruning."""
        cut = pruned_inside(self.network, self.sample, ratio, importance, everywhere)
        removed = 1 - multiply_accumulates(cut, self.sample) / multiply_accumulates(self.network, self.sample)
        name = f"torch-pruning, {importance}, {'global' if everywhere else 'uniform'}, inside blocks"
        new = recalibrate(cut, self.calibration)
        return [name, f"{removed:.2%}", self.shown(cut), self.shown(new), "has none"]


def main(
    data: Annotated[Path | None, typer.Option(help="Folder or zip file of images, .../SPLIT/CLASS/NAME.jpg.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Trained weights, .safetensors.")] = None,
    model: Annotated[str, typer.Option(help="cifar_resnetDEPTH.")] = "cifar_resnet20",
    ratio: Annotated[float, typer.Option(help="Fraction of MACs to remove.")] = 0.5,
    tests: Annotated[int, typer.Option(help="How many test images.")] = 2000,
    samples: Annotated[int, typer.Option(help="How many calibration images, of the training split.")] = 1024,
    variants: Annotated[int, typer.Option(help="How many ways of choosing channels and widths.")] = 2,
    rivals: Annotated[int, typer.Option(help="How many variants of torch-pruning, where it is installed.")] = 4,
    out: Annotated[Path | None, typer.Option(help="Markdown file to write.")] = None,
) -> None:
    """Prune a trained CIFAR ResNet and print its accuracy after each recovery that needs no training."""
    network = cifar_model(model)
    load_weights(network, weights or shared_file("weights", f"{model}.safetensors"))
    setting = Setting(network, data or shared_file("data", "cifar10.zip"), tests, samples)
    rows: list[Cells] = [["original", "0.00%", setting.shown(setting.network), "", ""]]
    for variant in _OURS[:variants]:
        rows.append(setting.ours(ratio, *variant))
        print(rows[-1], flush=True)
    if importlib.util.find_spec("torch_pruning") is not None:
        rows += [setting.theirs(ratio, *rival) for rival in _RIVALS[:rivals]]
    table = markdown_table(_COLUMNS, rows)
    print(table)
    if out is not None:
        note = (
            f"`{model}` with trained weights, {tests} test images, {samples} calibration images of the training split "
            "without their labels, no training. MACs are the multiply-accumulates of convolution and linear. Left to "
            "prune the residual streams too, torch-pruning turns this option-A network into one that does not run."
        )
        write_page(out, f"{model}: accuracy without training", note, table)


if __name__ == "__main__":
    typer.run(main)
