"""Networks and calibration images for accounting: trained weights where there are some, else random ones that do."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

import fxprune
from benchmarks.accounting.counting import MACS, count_flops, count_parameters
from benchmarks.accounting.rows import PublishedRow
from benchmarks.cifar import load_images, shared_file
from benchmarks.networks.papers import PAPER_NETWORKS, paper_network
from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph
from fxprune.cli.sources import load_weights
from fxprune.criteria import MultiSource

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
        missed = _measured(pruned, row, shape, before).misses(row)
        if 0 <= missed <= HALF_A_POINT:
            break
        ratio = min(ratio - missed + 1e-4 * (missed < 0), 0.999)
    return _measured(_compiled(row, subject, criterion, ratio, verify=verify), row, shape, before)


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
    return _measured(fxprune.apply(subject.model, sample, plan), row, shape, before)


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


def _measured(pruned: torch.nn.Module, row: PublishedRow, shape: tuple[int, ...], before: tuple[int, int]) -> Met:
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
