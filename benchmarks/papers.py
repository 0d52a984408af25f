"""The papers' whole methods, each with its published recipe, or with a short budget of updates."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn
from torchvision.models import get_model

from benchmarks.cifar import cifar_model, shared_file
from benchmarks.networks.papers import PAPER_NETWORKS, UNet, paper_network
from benchmarks.recipes.data import FolderImages, Identities, Images, Masks, SmallImages
from benchmarks.recipes.methods import FROM_SCRATCH, METHODS, Run
from benchmarks.recipes.training import RATIOS, TEACHER, Trainer
from benchmarks.rivals import macs
from benchmarks.tables import ResumableTable, write_page
from fxprune.cli.sources import load_weights
from fxprune.util.progress import Steps

_EMBEDDING = 128  # numbers that a face is told by
_RESULTS = Path(__file__).parent / "results" / "papers.csv"
_COLUMNS = (
    "run",
    "paper",
    "network",
    "updates",
    "images",
    "batch",
    "rate",
    "MACs removed",
    "parameters removed",
    "accuracy before",
    "after the (last) cut",
    "at the end",
    "CPU seconds of training",
)
_NOTE = """What was measured: the whole method of each paper (criterion, schedule, recovery), a row for each run.
*updates* counts those of the whole method, on so many training *images*; *published* is the full recipe of
`benchmarks/recipes/training.py`. *batch* and *rate* are given where they are not the published ones. Methods without
*accuracy before* start from random weights, the others from a trained network. On ResNets all cut inside residual
blocks only.

To repeat it: `python -m benchmarks.papers PAPERS --model M`.

How to read it: **a few hundred updates are no training.** Such rows compare methods that had the same little, and do
not say how good a paper is. `uncut` is the whole network, trained as long; `auto` is what `fxprune.compile` does by
itself, `torch_pruning` that library's best criterion here; both are fine-tuned. Accuracy is on 5,000 test images at 250
updates and more, and on 500 to 1,000 elsewhere. For networks that segment it is the mean intersection over union, on
masks computed from the images; for MobileFaceNet the share of pairs of images of three unseen classes that are told
apart correctly. Both first learn for as many updates as the method takes. [docs/papers.md](../../docs/papers.md)
compares the rows with the papers' claims."""


def main(
    papers: Annotated[list[str], typer.Argument(help=f"Some of {', '.join(METHODS)}.")],
    model: Annotated[
        str, typer.Option(help="cifar_resnetDEPTH, a paper's (VGG-16, DenseNet-40, ...) or torchvision's.")
    ] = "cifar_resnet20",
    data: Annotated[Path | None, typer.Option(help="Folder or zip file of images, .../SPLIT/CLASS/NAME.jpg.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Trained weights; by default those that are at hand.")] = None,
    scratch: Annotated[bool, typer.Option(help="Start from random weights, as most papers do.")] = False,
    steps: Annotated[int | None, typer.Option(help="Updates in all, in the place of the published epochs.")] = None,
    ratio: Annotated[
        float | None, typer.Option(help="Fraction of MACs to remove; by default the published one.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Images in a step, in the place of the published number.")] = None,
    rate: Annotated[float | None, typer.Option(help="First learning rate, in the place of the published one.")] = None,
    train: Annotated[int | None, typer.Option(help="How many training images.")] = None,
    tests: Annotated[int | None, typer.Option(help="How many test images.")] = None,
    state: Annotated[Path | None, typer.Option(help="Folder from which a stopped run goes on.")] = None,
    size: Annotated[
        int | None, typer.Option(help="Pixels of an image's side; by default those that the network takes.")
    ] = None,
    recover: Annotated[
        str | None, typer.Option(help="Repair what one cut left before it is trained, which no paper does.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    table: Annotated[Path, typer.Option(help="CSV file to add to; a page is written beside it.")] = _RESULTS,
) -> None:
    """Run papers' methods and add a row for each to the table of results; rows that are there are not run again."""
    unknown = set(papers) - set(METHODS)
    if unknown:
        raise typer.BadParameter(f"choose some of {', '.join(METHODS)}", param_hint="PAPERS")
    images = _images(model, data or shared_file("data", "cifar10.zip"), size, train, tests)
    rows = ResumableTable(table, _COLUMNS)
    beginnings: dict[bool, tuple[nn.Module, float | None]] = {}
    for paper in papers:
        removed = RATIOS[paper] if ratio is None or paper == "uncut" else ratio
        name = f"{paper} + {recover}" if recover else paper
        about: dict[str, object] = {"paper": name, "network": model, "updates": steps or "published"}
        always = paper in FROM_SCRATCH
        trained = not (scratch or always)
        run = (*about.values(), f"{removed:g}", seed, *(["scratch"] if scratch and not always else []))
        about |= {"run": " ".join(map(str, run)), "batch": batch, "rate": rate}
        if about["run"] in rows.rows:
            continue
        with Steps() as progress:
            folders = [state and state / str(part).replace(" ", "_") for part in (f"{model} {seed}", about["run"])]
            if trained not in beginnings:
                first = Trainer(images, steps, batch, None, folders[0], seed, progress=progress)
                beginnings[trained] = _beginning(model, first, trained, weights)
            network, before = beginnings[trained]
            trainer = Trainer(images, steps, batch, rate, folders[1], seed, progress=progress)
            method = Run(model, copy.deepcopy(network), trainer, removed, before, recover=recover)
            row = about | _row(method, METHODS[paper](method))
        rows.add(row)
        write_page(table.with_suffix(".md"), "The papers' methods", _NOTE, rows.markdown(_COLUMNS[1:]))
        print(", ".join(f"{name} {value}" for name, value in row.items() if value is not None), flush=True)


def _row(run: Run, pruned: nn.Module) -> dict[str, object]:
    images = run.trainer.images
    wide, narrow = ((macs(net, run.sample), sum(p.numel() for p in net.parameters())) for net in (run.network, pruned))
    return {
        "images": images.length(),
        "MACs removed": f"{1 - narrow[0] / wide[0]:.1%}",
        "parameters removed": f"{1 - narrow[1] / wide[1]:.1%}",
        "accuracy before": None if run.before is None else f"{run.before:.2%}",
        "after the (last) cut": None if run.cut is None else f"{run.cut:.2%}",
        "at the end": f"{images.accuracy(pruned):.2%}",
        "CPU seconds of training": round(sum(run.trainer.seconds.values())),
    }


_SEGMENTATION = ("U-Net", "U-Net-8", "DABNet", "DeepLabV3")
_VERIFICATION = ("MobileFaceNet",)


def _images(model: str, where: Path, size: int | None, train: int | None, tests: int | None) -> Images:
    if model in _SEGMENTATION:
        return Masks(where, train, tests)
    usual = PAPER_NETWORKS[model].shape[1] if model in PAPER_NETWORKS else 32
    if model in _VERIFICATION:
        return Identities(where, size or usual, _EMBEDDING, train, tests)
    side = size or (None if usual == 32 else usual)
    return SmallImages(where, train, tests) if side is None else FolderImages(where, side, train, tests)


def _beginning(model: str, first: Trainer, trained: bool, weights: Path | None) -> tuple[nn.Module, float | None]:
    """The network that the methods start from, and its accuracy if it is trained."""
    images = first.images
    network = _network(model, images.classes, first.seed)
    if not trained:
        return network, None
    known = weights or shared_file("weights", f"{model}.safetensors")
    if not known.exists() and model in (*_SEGMENTATION, *_VERIFICATION):
        first.fit("first", network, TEACHER)
    else:
        load_weights(network, known)
    return network, images.accuracy(network)


def _network(model: str, classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network: nn.Module
    if model == "U-Net-8":
        network = UNet(classes, width=8)
    elif model.startswith("cifar_"):
        network = cifar_model(model, classes)
    elif model in PAPER_NETWORKS:
        network = paper_network(model, classes, seed=seed)
    else:
        network = get_model(model, weights=None, num_classes=classes)
    return network.eval().to(memory_format=torch.channels_last)


if __name__ == "__main__":
    typer.run(main)
