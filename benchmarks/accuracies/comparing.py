"""Every way of pruning at every budget, before training and after it."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import fxprune
from benchmarks.cifar.accuracy import accuracy
from benchmarks.cifar.fine_tuning import Budget, ShiftedImages, distilled, fine_tuned
from benchmarks.cifar.images import load_images
from benchmarks.cifar.recalibrating import recalibrate
from benchmarks.cifar.resnet import CifarResNet
from benchmarks.harness.tables import ResumableTable, Row
from benchmarks.rivals import torch_pruning_criteria as rival

__all__ = ["OURS", "Comparison", "Setting"]

OURS = "fxprune, reconstruction"
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
        self.methods = (OURS, *theirs)
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
                    ours = {"reconstructed": found.start} if method == OURS else {}
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
        rows = {method: self.rows.rows[f"{method} {ratio:g}"] for method in self.methods if method != OURS}
        alike = [m for m, row in rows.items() if float(row["removed"]) < 100 * ratio + _SLACK]
        best = max(alike, key=lambda m: float(rows[m]["recalibrated"]), default=None)
        return [OURS] if best is None else [OURS, best]

    def _found(self, method: str, ratio: float) -> Cut:
        if (method, ratio) not in self._cuts:
            made = self._ours(ratio) if method == OURS else self._theirs(ratio, *_RIVALS[method])
            self._cuts[method, ratio] = made
        return self._cuts[method, ratio]

    def _ours(self, ratio: float) -> Cut:
        setting = self.setting
        network, data = setting.network, setting.calibration
        cut = fxprune.compile(
            network,
            data[0][:2],
            ratio,
            criterion="reconstruction",
            scope="reconstruction",
            residual="inner",
            calibration=data,
        )
        recalibrated, start = (fxprune.recover(cut, network, how, calibration=data) for how in _RECOVERIES)
        return Cut(fxprune.report(cut).achieved, cut, recalibrated, start)

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


_RECOVERIES = ("batchnorm", "reconstruct")
# Uniform shares come in coarse steps; a network that lost much more than was asked is no fair match.
_SLACK = 1.0
