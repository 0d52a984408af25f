"""Published pruning results counted again: is each row's reduction met, and what becomes of the parameters?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor, fx, nn

import fxprune
from benchmarks.cifar import load_images, shared_file
from benchmarks.networks.papers import PAPER_NETWORKS, paper_network
from benchmarks.published import (
    MACS,
    PublishedRow,
    count_flops,
    count_parameters,
    criterion_for,
    given_widths,
    published_rows,
)
from benchmarks.tables import ResumableTable, write_page
from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph
from fxprune.cli.sources import load_weights
from fxprune.criteria import MultiSource
from fxprune.errors import FxpruneError

_BATCH = {32: 128, 112: 16, 224: 8}


@dataclass(frozen=True)
class Subject:
    """A network in eval mode, calibration images, and where both come from."""

    model: nn.Module
    images: torch.Tensor
    weights: str
    data: str


def subject_of(row: PublishedRow, *, seed: int = 0) -> Subject:
    """The network of a row.

    The trained ResNet-56 for CIFAR-10 is used if its file is there. All other weights are random; their batch norms get
    random scales and shifts and the statistics of the images, because scales of one and means of zero would leave
    every criterion that reads them with nothing but ties.
    """
    model = paper_network(row.network, row.classes, seed=seed)
    images, data = _images(PAPER_NETWORKS[row.network].shape, seed)
    trained = shared_file("weights", "cifar_resnet56.safetensors")
    if row.network == "ResNet-56" and row.dataset == "CIFAR-10" and trained.exists():
        load_weights(model, trained)
        return Subject(model.eval(), images, "trained", data)
    settle(model, images, seed)
    return Subject(model, images, "random", data)


def settle(model: nn.Module, images: torch.Tensor, seed: int) -> None:
    """Random affine parameters for the batch norms, and running statistics of the images; ends in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.05, 1.0, generator=generator)
        nn.init.normal_(norm.bias, 0.0, 0.1, generator=generator)
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        model.train()(images)
    for norm in norms:
        norm.momentum = 0.1
    model.eval()


def _images(shape: tuple[int, ...], seed: int) -> tuple[torch.Tensor, str]:
    count = _BATCH.get(shape[-1], 2)
    archive = shared_file("data", "cifar10.zip")
    if shape[-1] == 32 and archive.exists():
        return load_images(archive, "train", count)[0], "CIFAR-10"
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)), "noise"


_ATTEMPTS = 8
HALF_A_POINT = 0.005


@dataclass(frozen=True)
class Met:
    """What was removed under the paper's counting, by how much the proof is off, and the widths."""

    flops_before: int
    params_before: int
    flops_removed: float
    params_removed: float
    proof_error: float

    def misses(self, row: PublishedRow) -> float:
        """How far the reduction the row asks for was missed or overshot, signed; FLOPs where they were published."""
        if row.flops_removed is not None:
            return self.flops_removed - row.flops_removed
        assert row.params_removed is not None
        return self.params_removed - row.params_removed


def meet(row: PublishedRow, subject: Subject, criterion: Any, *, verify: bool = True) -> Met:
    """Compile at ratios of MACs (or parameters) until the paper's own count is met, and prove the last network.

    A ratio counts multiply-accumulates; a paper may count batch norms too. So the ratio is corrected by what the count
    misses, a few times, until at least the published share is gone and no more than half a point above it.

    Raises:
        FxpruneError: the reduction is out of reach, or the network cannot be proven.
    """
    shape = tuple(subject.images.shape[1:])
    before = count_flops(subject.model, shape, row.rule), count_parameters(subject.model)
    ratio = row.flops_removed if row.flops_removed is not None else row.params_removed
    assert ratio is not None
    for _ in range(_ATTEMPTS):
        pruned = _compiled(row, subject, criterion, ratio, verify=False)
        missed = _counted(pruned, row, shape, before).misses(row)
        if 0 <= missed <= HALF_A_POINT:
            break
        ratio = min(ratio - missed + 1e-4 * (missed < 0), 0.999)
    return _counted(_compiled(row, subject, criterion, ratio, verify=verify), row, shape, before)


def meet_widths(row: PublishedRow, subject: Subject, criterion: Any, widths: Sequence[int]) -> Met:
    """Keep the given number of channels of each group, those that the criterion scores highest, and prove it."""
    shape = tuple(subject.images.shape[1:])
    before = count_flops(subject.model, shape, row.rule), count_parameters(subject.model)
    sample = subject.images[:1]
    graph = fxprune.analyze(subject.model, sample)
    tensors = dict(subject.model.state_dict())
    masks = {}
    for group, width in zip(graph.groups, widths, strict=True):
        scores = np.asarray(criterion.score(group, tensors, graph))
        masks[group] = np.zeros(group.size, dtype=np.bool_)
        masks[group][np.argsort(-scores, kind="stable")[:width]] = True
    plan = fxprune.Plan.from_masks(graph, masks, {"criterion": repr(criterion), "widths": list(widths)})
    return _counted(fxprune.apply(subject.model, sample, plan), row, shape, before)


def _compiled(row: PublishedRow, subject: Subject, criterion: Any, ratio: float, *, verify: bool) -> fx.GraphModule:
    budget = "macs" if row.flops_removed is not None else "params"
    return fxprune.compile(
        subject.model,
        subject.images[:1],
        ratio,
        budget=budget,
        criterion=criterion,
        calibration=[subject.images],
        residual=row.residual,
        couplings=row.couplings,
        verify=verify,
        progress=False,
    )


def _counted(pruned: torch.nn.Module, row: PublishedRow, shape: tuple[int, ...], before: tuple[int, int]) -> Met:
    flops, params = count_flops(pruned, shape, row.rule), count_parameters(pruned)
    proof = fxprune.report(pruned).proof
    error = float("nan") if proof is None else proof.relative_error
    return Met(*before, 1 - flops / before[0], 1 - params / before[1], error)


RANGE_COLUMNS = ("row", "early layers first", "late layers first")


@dataclass(frozen=True)
class ByDepth:
    """A scorer that takes whole layers (all but one channel) from one end of the network."""

    late_first: bool

    @property
    def name(self) -> str:
        """What reports print."""
        return f"{'late' if self.late_first else 'early'} layers first"

    def score(self, group: Group, tensors: Mapping[str, Tensor], graph: ChannelGraph) -> NDArray[np.float64]:
        """The place of the group in the network for every unit, shape ``(group.size,)``."""
        place = graph.groups.index(group)
        return np.full(group.size, float(-place if self.late_first else place))


def range_row(row: PublishedRow) -> dict[str, object]:
    """The fractions of parameters that go with the row's reduction of FLOPs, taken from either end; nothing is proven.

    Raises:
        FxpruneError: the reduction is out of reach.
    """
    images = torch.zeros(1, *PAPER_NETWORKS[row.network].shape)
    subject = Subject(paper_network(row.network, row.classes), images, "random", "none")
    removed = [meet(row, subject, ByDepth(late), verify=False).params_removed for late in (False, True)]
    return dict(zip(RANGE_COLUMNS, (row.name, *(f"{share:.2%}" for share in removed)), strict=True))


SEGMENTATION_COLUMNS = ("network", "parameters", "MACs", "MACs removed", "parameters removed", "proof error", "seconds")
NETWORKS = {"U-Net": 2, "DABNet": 19, "DeepLabV3": 21}


def segmentation_row(name: str, *, ratio: float = 0.5, seed: int = 0) -> dict[str, object]:
    """Compile with the paper's criterion, sets of filters judged by the output, couplings kept, and prove the result.

    Raises:
        FxpruneError: the network cannot be pruned so far, or not proven.
    """
    started = time.perf_counter()
    model, shape = paper_network(name, NETWORKS[name], seed=seed), PAPER_NETWORKS[name].shape
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))
    settle(model, images, seed)
    pruned = fxprune.compile(model, images[:1], ratio, criterion=MultiSource(), calibration=[images], progress=False)
    proof = fxprune.report(pruned).proof
    assert proof is not None
    macs, parameters = count_flops(model, shape, MACS), count_parameters(model)
    return {
        "network": name,
        "parameters": f"{parameters / 1e6:.2f} M",
        "MACs": f"{macs / 1e9:.3f} G at {shape[1]}x{shape[2]}",
        "MACs removed": f"{1 - count_flops(pruned, shape, MACS) / macs:.2%}",
        "parameters removed": f"{1 - count_parameters(pruned) / parameters:.2%}",
        "proof error": f"{proof.relative_error:.0e}",
        "seconds": f"{time.perf_counter() - started:.0f}",
    }


_COLUMNS = (
    "row",
    "criterion",
    "weights",
    "images",
    "counting",
    "published baseline",
    "counted baseline",
    "published FLOPs removed",
    "FLOPs removed",
    "within half a point",
    "published parameters removed",
    "parameters removed",
    "published accuracy",
    "proof error",
    "seconds",
    "note",
)
_SHOWN = tuple(c for c in _COLUMNS if c not in ("weights", "images", "counting", "seconds", "published accuracy"))
_NOTE = """What was measured: the FLOPs and parameters that fxprune removes with each paper's criterion, counted by the
paper's own rule, beside the published figures. The ratio is the published reduction of FLOPs (of parameters where no
FLOPs were published). No width is set by hand, except for the two rows of VGG-16 whose published rates by layer are the
input.

To repeat it: `python -m benchmarks.papers_accounting`.

How to read it: *within half a point* compares the two reductions. Weights are random, apart from the trained ResNet-56
for CIFAR-10, so nothing is said about accuracies here."""
_RANGES = (
    "The same reductions of FLOPs with channels taken from one end of the network only: so many parameters can go with "
    "them, depending on where channels are taken."
)
_SEGMENTATION = (
    "Of Xiu et al. 2022 no numeric row could be read. Their segmentation networks at half of their MACs, with their "
    "criterion (sets of filters judged by the output) and couplings kept:"
)


def main(
    out: Annotated[Path, typer.Option(help="The CSV file; the page goes beside it.")] = Path(
        "benchmarks/results/papers_accounting.csv"
    ),
    only: Annotated[str, typer.Option(help="Rows whose name contains this.")] = "",
    again: Annotated[bool, typer.Option(help="Repeat rows that are in the table.")] = False,
    seed: Annotated[int, typer.Option(help="Of random weights and images.")] = 0,
) -> None:
    """Measure the rows that are missing from the table, then write its page."""
    table = ResumableTable(out, _COLUMNS)
    rows = [row for row in published_rows() if only in row.name and (again or row.name not in table.rows)]
    for number, row in enumerate(rows, 1):
        print(f"{number}/{len(rows)} {row.name}", flush=True)
        table.add(_measured(row, seed))
    between = ResumableTable(out.with_name(f"{out.stem}_ranges.csv"), RANGE_COLUMNS)
    for row in (r for r in published_rows() if r.flops_removed and only in r.name):
        if again or row.name not in between.rows:
            print(f"ranges of {row.name}", flush=True)
            between.add(range_row(row))
    others = ResumableTable(out.with_name(f"{out.stem}_segmentation.csv"), SEGMENTATION_COLUMNS)
    for name in NETWORKS:
        if only in name and (again or name not in others.rows):
            print(name, flush=True)
            others.add(segmentation_row(name, seed=seed))
    sections = [table.markdown(_SHOWN), _RANGES, between.markdown(), _SEGMENTATION, others.markdown()]
    write_page(out.with_suffix(".md"), "Published reductions, met", _NOTE, *sections)


def _measured(row: PublishedRow, seed: int) -> dict[str, object]:
    started = time.perf_counter()
    torch.manual_seed(seed)
    cells: dict[str, object] = {"row": row.name, "counting": row.rule.name, "published accuracy": row.accuracy}
    cells["published FLOPs removed"] = _percent(row.flops_removed)
    cells["published parameters removed"] = _percent(row.params_removed)
    cells["published baseline"] = _baseline(row)
    try:
        subject = subject_of(row, seed=seed)
        criterion = criterion_for(row.criterion, row.network)
        met, note = _met(row, subject, criterion)
        cells |= {"criterion": _described(criterion), "weights": subject.weights, "images": subject.data, "note": note}
        cells |= _found(row, met)
    except FxpruneError as error:
        cells["note"] = f"{type(error).__name__}: {error}"
    return cells | {"seconds": f"{time.perf_counter() - started:.0f}"}


def _met(row: PublishedRow, subject: Subject, criterion: Any) -> tuple[Met, str]:
    widths = given_widths(row)
    if widths is None:
        return meet(row, subject, criterion), ""
    return meet_widths(row, subject, criterion, widths), "published rates"


def _found(row: PublishedRow, met: Met) -> dict[str, object]:
    return {
        "counted baseline": f"{met.flops_before / 1e6:.2f} M, {met.params_before / 1e6:.2f} M",
        "FLOPs removed": _percent(met.flops_removed),
        "parameters removed": _percent(met.params_removed),
        "within half a point": abs(met.misses(row)) <= HALF_A_POINT,
        "proof error": f"{met.proof_error:.0e}",
    }


def _described(criterion: Any) -> str:
    """The name, and the options that are not the default ones."""
    chosen = [(f.name, getattr(criterion, f.name), f.default) for f in fields(criterion)]
    told = [f"{name}={value}" for name, value, default in chosen if default is not MISSING and value != default]
    parts = [f"({_described(value)})" for _, value, default in chosen if default is MISSING]
    return " ".join([criterion.name, *told, *parts])


def _baseline(row: PublishedRow) -> str:
    printed = [f"{pair[0]:g} M" for pair in (row.flops, row.params) if pair is not None and pair[0] != 100]
    return ", ".join(printed)


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{fraction:.2%}"


if __name__ == "__main__":
    typer.run(main)
