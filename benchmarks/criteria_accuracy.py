"""All criteria on a trained CIFAR ResNet: accuracy after pruning, with no training and with batch norm recalibrated."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

import fxprune
from benchmarks import rivals as rival
from benchmarks.cifar import CifarResNet, accuracy, cifar_model, load_images, recalibrate, shared_file
from benchmarks.tables import ResumableTable, markdown_table, write_page
from fxprune.analysis.solving import ChannelGraph
from fxprune.calibration import Calibration, Collector
from fxprune.capture.samples import Sample
from fxprune.cli.sources import load_weights
from fxprune.criteria import (
    CHIP,
    FPGM,
    APoZ,
    Criterion,
    FeatureDistance,
    FeatureEntropy,
    FilterSimilarity,
    Hessian,
    HRank,
    InformationFusion,
    Lamp,
    Magnitude,
    MeanActivation,
    MultiSource,
    Parallel,
    Random,
    RankAverage,
    Reconstruction,
    Slimming,
    Taylor,
    ThiNet,
    judge,
)
from fxprune.planning import allocate
from fxprune.rewriting import rewrite

CRITERIA: dict[str, Criterion] = {
    "random": Random(),
    "random, another draw": Random(1),
    "random, a third draw": Random(2),
    "magnitude, L1 of filters": Magnitude(1, "producer"),
    "magnitude, L2 of filters": Magnitude(2, "producer"),
    "magnitude, group norm": Magnitude(),
    "fpgm": FPGM(),
    "slimming": Slimming(),
    "slimming, mean-scaled": Slimming("mean"),
    "lamp": Lamp(),
    "taylor": Taylor(),
    "taylor, mean-scaled": Taylor(normalise="mean"),
    "taylor, gradients of batches": Taylor(over="batch"),
    "taylor, each weight": Taylor(over="batch", each=True, squared=False, normalise="mean"),
    "taylor_activations": Taylor("activations"),
    "taylor_activations, mean-scaled": Taylor("activations", normalise="mean"),
    "hessian": Hessian(),
    "hessian, not scaled": Hessian(normalise="none"),
    "apoz": APoZ(),
    "mean_activation": MeanActivation(),
    "hrank": HRank(),
    "chip": CHIP(),
    "thinet": ThiNet(),
    "reconstruction": Reconstruction(),
    "feature_entropy": FeatureEntropy(),
    "feature_entropy, histogram": FeatureEntropy("histogram"),
    "feature_entropy, histogram of each map": FeatureEntropy("histogram", value_range="map"),
    "parallel": Parallel(),
    "multi_source": MultiSource(),
    "multi_source, rank": MultiSource(global_mode="rank"),
    "filter_similarity": FilterSimilarity(),
    "filter_similarity, euclidean": FilterSimilarity("euclidean"),
    "feature_distance": FeatureDistance(),
    "information_fusion": InformationFusion(),
    "mean rank of magnitude and taylor": RankAverage((Magnitude(), Taylor())),
}
_COLUMNS = ("case", "library", "criterion", "residual", "asked", "removed", "accuracy", "recalibrated", "seconds")
Batches = list[tuple[Tensor, Tensor]]
Row = dict[str, object]


@dataclass(frozen=True)
class Setup:
    """The trained network, what it is calibrated with, and what it is tested on."""

    model: CifarResNet
    batches: Batches
    images: Tensor
    labels: Tensor

    def row(self, library: str, criterion: str, residual: str, ratio: float, pruned: nn.Module, seconds: float) -> Row:
        """Measured accuracies of a pruned network; its batch norms end recalibrated."""
        calibration = torch.cat([images for images, _ in self.batches])
        removed = 1 - rival.macs(pruned, self.images) / rival.macs(self.model, self.images)
        plain = accuracy(pruned, self.images, self.labels)
        recalibrate(pruned, calibration)
        after = accuracy(pruned, self.images, self.labels)
        case = f"{library} {criterion} {residual} {ratio:.0%}"
        shown = (f"{ratio:.0%}", f"{removed:.1%}", f"{plain:.1%}", f"{after:.1%}", f"{seconds:.1f}")
        return dict(zip(_COLUMNS, (case, library, criterion, residual, *shown), strict=True))


def ours(setup: Setup, name: str, ratios: Sequence[float], residual: Sequence[str], max_ratio: float) -> Iterator[Row]:
    """One criterion of fxprune at every ratio; it is run once."""
    sample = setup.images[:2]
    graph: ChannelGraph = fxprune.analyze(setup.model, sample)
    started = time.perf_counter()
    with torch.no_grad():
        data = Calibration(setup.batches, Sample.from_input(sample))
        judged = judge(CRITERIA[name], graph, setup.model.state_dict(), Collector(graph, setup.model, data))
    seconds = time.perf_counter() - started
    for mode in residual:
        for ratio in ratios:
            masks = allocate(graph, judged, ratio=ratio, residual=mode, max_ratio=max_ratio)
            pruned = rewrite(graph, setup.model, {group.variable: mask for group, mask in masks.items()})
            yield setup.row("fxprune", name, mode, ratio, pruned, seconds)


def theirs(setup: Setup, name: str, ratios: Sequence[float]) -> Iterator[Row]:
    """One criterion of torch-pruning at every ratio."""
    for ratio in ratios:
        started = time.perf_counter()
        pruned, _ = rival.pruned(setup.model, name, ratio, setup.batches)
        yield setup.row("torch-pruning", name, "inner", ratio, pruned, time.perf_counter() - started)


def page(rows: Sequence[Mapping[str, object]], ratios: Sequence[float], residual: str) -> str:
    """A table of one treatment of residual streams: accuracy and, after recalibration, accuracy at each ratio."""
    found = {(r["library"], r["criterion"], r["asked"]): r for r in rows if r["residual"] == residual}
    names = list(dict.fromkeys((library, criterion) for library, criterion, _ in found))
    header = ["library", "criterion"]
    for ratio in ratios:
        header += [f"MACs removed at {ratio:.0%}", "accuracy", "recalibrated"]
    lines = []
    for library, criterion in names:
        line = [str(library), str(criterion)]
        for ratio in ratios:
            row: Mapping[str, object] = found.get((library, criterion, f"{ratio:.0%}"), {})
            line += [str(row.get(column, "")) for column in ("removed", "accuracy", "recalibrated")]
        lines.append(line)
    return markdown_table(header, lines)


def main(
    model: Annotated[str, typer.Option(help="cifar_resnetDEPTH.")] = "cifar_resnet20",
    images: Annotated[int, typer.Option(help="How many test images, spread over the classes.")] = 2000,
    calibration: Annotated[int, typer.Option(help="How many training images, spread over the classes.")] = 256,
    ratio: Annotated[list[float] | None, typer.Option(help="Fraction of MACs to remove; may be repeated.")] = None,
    criterion: Annotated[list[str] | None, typer.Option(help="A name of the table; all by default.")] = None,
    residual: Annotated[list[str] | None, typer.Option(help='"inner", "coupled" or both, the default.')] = None,
    max_ratio: Annotated[float, typer.Option(help="The largest share of a group that may go.")] = 1.0,
    table: Annotated[Path | None, typer.Option(help="CSV file, taken up again where it stopped.")] = None,
    out: Annotated[Path | None, typer.Option(help="Markdown file to write.")] = None,
) -> None:
    """Prune with every criterion and print accuracies; torch-pruning's stand beside them where it is installed."""
    ratios = ratio or [0.3, 0.5, 0.7]
    setup = _setup(model, images, calibration)
    rows = ResumableTable(table or Path(f"criteria_{model}.csv"), _COLUMNS)
    done = {(row["library"], row["criterion"], row["residual"]) for row in rows.rows.values()}
    for name in criterion or CRITERIA:
        modes = [m for m in residual or ("inner", "coupled") if ("fxprune", name, m) not in done]
        if modes:
            for row in ours(setup, name, ratios, modes, max_ratio):
                rows.add(row)
                print(*row.values(), flush=True)
    for name in rival.CRITERIA if _has_rival() else ():
        if ("torch-pruning", name, "inner") not in done:
            for row in theirs(setup, name, ratios):
                rows.add(row)
                print(*row.values(), flush=True)
    text = "\n\n".join(
        f"## residual={m!r}\n\n{page(list(rows.rows.values()), ratios, m)}" for m in ("inner", "coupled")
    )
    print(text)
    if out is not None:
        before = accuracy(setup.model, setup.images, setup.labels)
        write_page(out, f"Criteria on {model}", _note(model, images, calibration, before), text)


def _setup(model: str, images: int, calibration: int) -> Setup:
    network = cifar_model(model)
    load_weights(network, shared_file("weights", f"{model}.safetensors"))
    archive = shared_file("data", "cifar10.zip")
    pixels, labels = load_images(archive, "train", calibration)
    mixed = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    batches = list(zip(pixels[mixed].split(64), labels[mixed].split(64), strict=True))
    return Setup(network.eval(), batches, *load_images(archive, "test", images))


def _has_rival() -> bool:
    try:
        import torch_pruning  # noqa: F401
    except ImportError:
        return False
    return True


_NOTE = """What was measured: the accuracy of `{model}` with trained weights ({before:.1%} before pruning) on {images}
test images, spread over the classes, after pruning in one shot by each criterion, without training.

To repeat it: `python -m benchmarks.criteria_accuracy --model {model} --images {images} --table criteria.csv`.

How to read it: *accuracy* is as cut; *recalibrated* is with batch norm statistics measured anew on {calibration}
training images, on which criteria are calibrated, too. All groups are ranked together. torch-pruning 1.6.1 ranks all
layers together, too, but keeps the widths of residual streams, because its result does not run if it prunes them here;
so its rows are below residual='inner'. MACs are those of convolution and linear; torch-pruning's channel ratio is
searched until they fit."""


def _note(model: str, images: int, calibration: int, before: float) -> str:
    return _NOTE.format(model=model, images=images, calibration=calibration, before=before)


if __name__ == "__main__":
    typer.run(main)
