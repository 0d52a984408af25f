"""How close a network's outputs are to the original's, on samples that no recovery is fitted to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.analysis.groups import Group
from fxprune.axes.expressions import IndexArray
from fxprune.calibration.balance import Weights, class_dim, divergence, floating_tensors
from fxprune.calibration.collecting import PrivateNetwork
from fxprune.calibration.effects import replaced, silent, squared_error
from fxprune.calibration.statistic import add_over_ranks
from fxprune.capture.samples import Sample
from fxprune.errors import FxpruneError
from fxprune.recovery.base import Work
from fxprune.recovery.walking import evaluating
from fxprune.reporting import FidelityRow
from fxprune.rewriting.rewriter import rewrite_without_checks

# More samples would not change a decision.
_MOST_SAMPLES = 256
_SAMPLES_A_GROUP = 16


class Reference:
    """The original's outputs on at most ``most`` held-out samples (of all samples if none are), to compare with."""

    def __init__(self, work: Work, most: int = _MOST_SAMPLES) -> None:
        self._held_out, self._predicts_tokens = work.holds_out, work.predicts_tokens
        with torch.no_grad():
            chosen = list(self._chosen(work, most))
            self._wanted = [_run(work.network, sample, rows) for sample, rows, _ in chosen]
            self._weights = [weights[rows] if weights is not None else None for _, rows, weights in chosen]

    def measure(self, network: nn.Module, called: str) -> FidelityRow:
        """Compare a network, in eval mode; ``called`` is its name in the report."""
        sums = torch.zeros(8, dtype=torch.float64)
        odd = torch.zeros(1, dtype=torch.float64)
        with evaluating(network):
            for (sample, rows, wanted), weights in zip(self._wanted, self._weights, strict=True):
                given = _rows_of(floating_tensors(_copied(sample).call(network)), rows)
                if [g.shape for g in given] != [w.shape for w in wanted]:
                    odd += 1
                    continue
                for one, other in zip(given, wanted, strict=True):
                    sums[:6] += _sums(one.double(), other.double(), weights)
                    if self._predicts_tokens(other.shape):
                        tokens = other[..., 0].numel()
                        sums[6:] += torch.tensor([float(divergence(one, other, -1, None)) * tokens, tokens])
        counts = (len(rows) if rows is not None else sample.batch_size or 1 for sample, rows, _ in self._wanted)
        samples = torch.tensor([sum(counts)], dtype=torch.float64)
        add_over_ranks([sums, odd, samples])
        error, energy, agreeing, decided, cosines, compared, diverging, tokens = sums.tolist()
        if odd or not energy > 0:
            return FidelityRow(called, int(samples), self._held_out)
        return FidelityRow(
            called,
            int(samples),
            self._held_out,
            (error / energy) ** 0.5,
            agreeing / decided if decided else None,
            cosines / compared if compared else None,
            diverging / tokens if tokens else None,
        )

    def _chosen(self, work: Work, left: int) -> Iterator[tuple[Sample, Tensor, Weights | None]]:
        for sample, held, weights in zip(work.samples, work.held, work.weights, strict=True):
            rows = torch.nonzero(held).reshape(-1)[:left] if self._held_out else torch.arange(len(held))[:left]
            left -= len(rows)
            if len(rows):
                yield sample, rows, weights


def errors_of_groups(work: Work) -> dict[str, float]:
    """The relative error of the outputs if only one group is cut, by name of the group.

    ``work.pruned`` must not be recovered yet. All of it costs at most one run over the calibration: groups share its
    samples; if there are more groups than samples, only those that lose most are measured. If setting all removed
    channels to zero has the same error as the cut, single groups are set to zero; else each is cut alone.
    """
    masks = work.masks
    cut = sorted((g for g in work.graph.groups if not masks[g.variable].all()), key=lambda g: masks[g.variable].mean())
    gone = [(group, np.flatnonzero(~masks[group.variable])) for group in cut[: work.seen]]
    yardstick = Reference(work, min(work.seen // max(len(cut), 1), _SAMPLES_A_GROUP))
    whole = {variable: np.ones_like(mask) for variable, mask in masks.items()}

    def zeroed(which: Sequence[tuple[Group, IndexArray]]) -> float | None:
        with torch.no_grad(), replaced(work.network, silent(work.network, which)):
            return yardstick.measure(work.network.module, "").error

    def error(group: Group, channels: IndexArray) -> float | None:
        if as_good:
            return zeroed([(group, channels)])
        try:
            alone, _ = rewrite_without_checks(work.graph, work.model, {**whole, group.variable: masks[group.variable]})
        except FxpruneError:  # it can only be cut together with others
            return None
        return yardstick.measure(alone, "").error

    given, wanted = zeroed(gone), yardstick.measure(work.pruned, "").error
    as_good = given is not None and wanted is not None and math.isclose(given, wanted, rel_tol=1e-3)
    errors = {group.name: error(group, channels) for group, channels in gone}
    return {name: error for name, error in errors.items() if error is not None}


def _run(network: PrivateNetwork, sample: Sample, rows: Tensor) -> tuple[Sample, Tensor | None, list[Tensor]]:
    """Some rows of a sample and the network's outputs for them; the whole sample if no other batch size runs."""
    apart = sample.rows(rows)
    if (sample.batch_size or 1) > len(rows):
        try:
            return apart, None, floating_tensors(network.run(_copied(apart)))
        except Exception:  # the network is the user's code, and may be written for one batch size
            return sample, rows, _rows_of(floating_tensors(network.run(_copied(sample))), rows)
    return sample, None, floating_tensors(network.run(_copied(sample)))


def _rows_of(leaves: list[Tensor], rows: Tensor | None) -> list[Tensor]:
    """These rows of each output; the whole output if it does not have that many."""
    if rows is None:
        return leaves
    return [leaf[rows.to(leaf.device)] if leaf.ndim and len(leaf) > int(rows[-1]) else leaf for leaf in leaves]


def _copied(sample: Sample) -> Sample:
    """A copy, as a network may write to its input."""
    return sample.map(torch.clone)


def _sums(given: Tensor, wanted: Tensor, weights: Weights | None) -> Tensor:
    """Squared error, energy, number of equal decisions and of all, sum of cosines and their number, on the CPU.

    A decision is the largest entry along the classes.
    """
    found = torch.zeros(6, dtype=torch.float64)
    found[:2] = squared_error(given, wanted, weights)
    if given.ndim >= 2 and given.numel():
        one, other = (value.movedim(class_dim(given), -1).flatten(0, -2) for value in (given, wanted))
        if one.shape[1] > 1:
            found[2], found[3] = (one.argmax(1) == other.argmax(1)).sum(), len(one)
            found[4], found[5] = nn.functional.cosine_similarity(one, other).sum(), len(one)
    return found
