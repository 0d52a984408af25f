"""Accuracy of trained CIFAR networks at three budgets: cut, recalibrated, reconstructed, fine-tuned and distilled."""

from __future__ import annotations

import copy
import importlib.util
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

import fxprune
from benchmarks import rivals as rival
from benchmarks.cifar import (
    Budget,
    CifarResNet,
    ShiftedImages,
    accuracy,
    cifar_model,
    distilled,
    fine_tuned,
    load_images,
    recalibrate,
    shared_file,
)
from benchmarks.tables import ResumableTable, Row, markdown_table, write_page
from fxprune.cli.sources import load_weights

COLUMNS = (
    "case",
    "method",
    "ratio",
    "removed",
    "cut",
    "recalibrated",
    "reconstructed",
    "seed",
    "steps",
    "fine_tuned",
    "distilled",
    "seconds",
)
_SHOWN = ("method", "MACs removed", "cut only", "batch norm recalibrated", "reconstructed", "fine-tuned", "distilled")


def page_of(rows: Sequence[Row]) -> str:
    """A table for each budget; trainings are the mean over seeds, with least and greatest, and their number."""
    original = next(row for row in rows if row["method"] == "original")
    parts = [f"Accuracy of the original: {original['cut']} %. All numbers in percent."]
    for ratio in sorted({row["ratio"] for row in rows if row["ratio"]}):
        untrained = [row for row in rows if row["ratio"] == ratio and not row["seed"]]
        lines = [_line(row, [r for r in rows if r["seed"] and _same(r, row)]) for row in untrained]
        parts.append(f"## {float(ratio):.0%} of the MACs removed\n\n{markdown_table(_SHOWN, lines)}")
    return "\n\n".join(parts)


def _same(row: Row, other: Row) -> bool:
    return row["method"] == other["method"] and row["ratio"] == other["ratio"]


def _line(row: Row, trained: Sequence[Row]) -> list[str]:
    plain = [row[name] for name in ("method", "removed", "cut", "recalibrated", "reconstructed")]
    return plain + [_spread([float(r[name]) for r in trained]) for name in ("fine_tuned", "distilled")]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.2f} (1 seed)"
    return f"{mean:.2f} ({min(values):.2f} to {max(values):.2f}, {len(values)} seeds)"


AUTO = "fxprune, the plain call"
OURS: dict[str, dict[str, str]] = {
    AUTO: {},
    "fxprune, reconstruction": {
        "criterion": "reconstruction",
        "scope": "reconstruction",
        "residual": "inner",
        "round_to": "auto",
    },
}
"""Options beside the calibration. What the plain call recovers is matched, too."""
_RIVALS = {
    f"torch-pruning, {name}, {'global' if everywhere else 'uniform'}": (name, everywhere)
    for name in ("magnitude", "fpgm", "taylor")
    for everywhere in (True, False)
}


class Setting:
    """A trained network, test and training images, and calibration images (the rival's Taylor reads their labels)."""

    def __init__(
        self, network: CifarResNet, data: Path, tests: int, samples: int, training: int, budget: Budget
    ) -> None:
        self.network = network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.images, self.labels = load_images(data, "test", tests)
        self.images = self.images.contiguous(memory_format=torch.channels_last)
        pixels, labels = load_images(data, "train", samples)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        self.batches = list(zip(pixels.split(256), labels.split(256), strict=True))
        self.training = ShiftedImages(*load_images(data, "train", training), budget.batch_size)
        self.budget = budget

    @property
    def calibration(self) -> list[Tensor]:
        """Images without labels."""
        return [images for images, _ in self.batches]

    def accuracy(self, network: nn.Module) -> str:
        """Of a network, in percent."""
        return f"{100 * accuracy(network, self.images, self.labels):.2f}"


@dataclass(frozen=True)
class Cut:
    """A pruned network, and what its recovery without training made of it."""

    removed: float
    plain: nn.Module
    recalibrated: nn.Module
    start: nn.Module


class Comparison:
    """Rows of a table that is taken up where it stopped."""

    def __init__(self, setting: Setting, rows: ResumableTable, rivals: bool, uniform: bool = True) -> None:
        self.setting, self.rows = setting, rows
        theirs = [method for method, (_, everywhere) in _RIVALS.items() if rivals and (everywhere or uniform)]
        self.methods = (*OURS, *theirs)
        self._cuts: dict[tuple[str, float], Cut] = {}

    def run(self, ratios: Sequence[float], seeds: int) -> None:
        """Budget by budget with the first seed, then the other seeds."""
        for ratio in ratios:
            self.cut([ratio])
            self.train([ratio], range(min(1, seeds)))
        self.train(ratios, range(1, seeds))

    def cut(self, ratios: Sequence[float]) -> None:
        """A row for every method and budget: accuracies without training."""
        self._add({"case": "original", "method": "original", "removed": "0.00"}, cut=self.setting.network)
        for ratio in ratios:
            for method in self.methods:
                case = f"{method} {ratio:g}"
                if case not in self.rows.rows:
                    found = self._found(method, ratio)
                    about = {"case": case, "method": method, "ratio": ratio, "removed": f"{100 * found.removed:.2f}"}
                    ours = {"reconstructed": found.start} if method in OURS else {}
                    self._add(about, cut=found.plain, recalibrated=found.recalibrated, **ours)

    def train(self, ratios: Sequence[float], seeds: Iterable[int]) -> None:
        """A row for every seed, budget and, of the methods, ours and the rival's best."""
        for seed in seeds:
            for ratio in ratios:
                for method in self._trained(ratio):
                    case = f"{method} {ratio:g} seed {seed}"
                    if case not in self.rows.rows:
                        about = {"case": case, "method": method, "ratio": ratio, "seed": seed}
                        self._train(about, self._found(method, ratio), seed)

    def _train(self, about: dict[str, object], found: Cut, seed: int) -> None:
        setting, began = self.setting, time.process_time()
        given = (setting.network, setting.training, setting.budget, seed)
        tuned, taught = fine_tuned(found.start, *given), distilled(found.start, *given)
        about |= {"steps": setting.budget.steps, "seconds": round(time.process_time() - began, 1)}
        self._add(about, fine_tuned=tuned, distilled=taught)

    def _trained(self, ratio: float) -> list[str]:
        """Ours, and the rival that is best before training of those that removed no more than they had to."""
        rows = {method: self.rows.rows[f"{method} {ratio:g}"] for method in self.methods if method not in OURS}
        alike = [m for m, row in rows.items() if float(row["removed"]) < 100 * ratio + _SLACK]
        best = max(alike, key=lambda m: float(rows[m]["recalibrated"]), default=None)
        return [*OURS] if best is None else [*OURS, best]

    def _found(self, method: str, ratio: float) -> Cut:
        if (method, ratio) not in self._cuts:
            made = self._ours(ratio, method) if method in OURS else self._theirs(ratio, *_RIVALS[method])
            self._cuts[method, ratio] = made
        return self._cuts[method, ratio]

    def _ours(self, ratio: float, method: str) -> Cut:
        network, data = self.setting.network, self.setting.calibration
        how = "auto" if method == AUTO else "reconstruct"
        start = fxprune.compile(network, data[0][:2], ratio, calibration=data, recover=how, **OURS[method])
        cut = fxprune.apply(network, data[0][:2], fxprune.report(start).plan, verify=False)
        recalibrated = fxprune.recover(cut, network, "batchnorm", calibration=data)
        return Cut(fxprune.report(start).achieved, cut, recalibrated, start)

    def _theirs(self, ratio: float, name: str, everywhere: bool) -> Cut:
        cut, removed = rival.pruned(self.setting.network, name, ratio, self.setting.batches, everywhere)
        recalibrated = copy.deepcopy(cut)
        recalibrate(recalibrated, torch.cat(self.setting.calibration))
        return Cut(removed, cut, recalibrated, recalibrated)

    def _add(self, about: dict[str, object], **networks: nn.Module) -> Row | None:
        if str(about["case"]) in self.rows.rows:
            return None
        row = {**about, **{name: self.setting.accuracy(network) for name, network in networks.items()}}
        self.rows.add(row)
        print(*(f"{name}={value}" for name, value in row.items() if name != "case"), flush=True)
        return row


# Uniform shares come in coarse steps; a network that lost much more than was asked is no fair match.
_SLACK = 1.0


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


_NOTE = """What was measured: the accuracy of `{model}` with trained weights on {tests} test images after pruning, and
after the same short training of each result. Calibration: {samples} images of the training split without their labels
(torch-pruning's Taylor criterion reads the labels). Training: {steps} steps of {batch} images out of {training},
shifted and mirrored; SGD with momentum 0.9, learning rate {rate:g} falling to zero along a cosine. Distillation has
temperature 4 and weighs the labels 0.1.

To repeat it: `python -m benchmarks.accuracy --model {model} --steps {steps}`.

How to read it: the columns go from the cut network to the trained ones. Training starts from the reconstructed network
for fxprune, and for torch-pruning from the one with batch norm recalibrated. Of torch-pruning's variants only the best
at that point is trained, and none that removed a point more than was asked. The plain call matches what it has
reconstructed. MACs are those of convolution and linear. torch-pruning keeps the widths of the residual streams, because
its result does not run if it prunes those of this network."""


def _note(model: str, tests: int, samples: int, training: int, budget: Budget) -> str:
    return _NOTE.format(
        model=model, tests=tests, samples=samples, training=training, steps=budget.steps, batch=budget.batch_size,
        rate=budget.learning_rate,
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
