"""Accuracy at several budgets: without training, and after the same short training, beside torch-pruning."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.accuracies.comparing import Comparison, Setting
from benchmarks.accuracies.tabulating import COLUMNS, page_of
from benchmarks.cifar.files import shared_file
from benchmarks.cifar.fine_tuning import Budget
from benchmarks.cifar.resnet import cifar_model
from benchmarks.harness.tables import ResumableTable, write_page
from fxprune.cli.sources import load_weights


def main(
    data: Annotated[Path | None, typer.Option(help="Folder or zip file of images, .../SPLIT/CLASS/NAME.jpg.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Trained weights, .safetensors.")] = None,
    model: Annotated[str, typer.Option(help="cifar_resnetDEPTH.")] = "cifar_resnet20",
    ratio: Annotated[list[float] | None, typer.Option(help="Fraction of MACs to remove; may be repeated.")] = None,
    tests: Annotated[int, typer.Option(help="How many test images.")] = 2000,
    samples: Annotated[int, typer.Option(help="How many calibration images, of the training split.")] = 1024,
    training: Annotated[int, typer.Option(help="How many training images.")] = 10000,
    steps: Annotated[int, typer.Option(help="Steps of each training; 0 trains nothing.")] = 150,
    batch: Annotated[int, typer.Option(help="Images of a step.")] = 64,
    rate: Annotated[float, typer.Option(help="Learning rate of the first step.")] = 0.01,
    seeds: Annotated[int, typer.Option(help="How many trainings of each kind.")] = 3,
    uniform: Annotated[bool, typer.Option(help="torch-pruning also with the same share of each layer.")] = True,
    table: Annotated[Path | None, typer.Option(help="CSV file, taken up again where it stopped.")] = None,
    out: Annotated[Path | None, typer.Option(help="Markdown file to write.")] = None,
) -> None:
    """Prune a trained CIFAR ResNet, train it for a few steps, print accuracies; torch-pruning's stand beside them."""
    network = cifar_model(model)
    load_weights(network, weights or shared_file("weights", f"{model}.safetensors"))
    budget = Budget(steps, batch, rate)
    setting = Setting(network, data or shared_file("data", "cifar10.zip"), tests, samples, training, budget)
    rows = ResumableTable(table or Path(f"accuracy_{model}.csv"), COLUMNS)
    ratios = ratio or [0.5, 0.3, 0.7]
    rivals = importlib.util.find_spec("torch_pruning") is not None
    Comparison(setting, rows, rivals, uniform).run(ratios, seeds if steps else 0)
    text = page_of(list(rows.rows.values()))
    print(text)
    if out is not None:
        note = _note(model, tests, samples, training, budget)
        write_page(out, f"{model}: accuracy without training and after a short one", note, text)


def _note(model: str, tests: int, samples: int, training: int, budget: Budget) -> str:
    return (
        f"`{model}` with trained weights, {tests} test images, {samples} calibration images of the training split "
        f"without their labels (torch-pruning's Taylor reads them). Trainings: {budget.steps} steps of "
        f"{budget.batch_size} images out of {training}, shifted and mirrored, SGD with momentum 0.9, learning rate "
        f"{budget.learning_rate:g} falling to zero along a cosine, the same for all. fxprune starts from the "
        "reconstructed network, torch-pruning from the one with batch norm recalibrated; of its variants the one that "
        "is best there is trained (not those that removed a point more than was asked). Distillation: temperature 4, "
        "labels weighted 0.1. MACs are those of convolution and linear. torch-pruning keeps the residual streams' "
        "widths: left to prune them, it turns this option-A network into one that does not run."
    )


if __name__ == "__main__":
    typer.run(main)
