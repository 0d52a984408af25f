"""The ratio at which a network meets a published reduction, and what else is then gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

import fxprune
from benchmarks.accounting.counting import count_flops, count_parameters
from benchmarks.accounting.rows import PublishedRow
from benchmarks.accounting.settling import Subject

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


__all__ = ["HALF_A_POINT", "Met", "meet", "meet_widths"]
