"""Multi-source information (Xiu et al. 2022, "Global filter pruning based on multi-source information")."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import FloatArray
from fxprune.axes.expressions import IndexArray
from fxprune.calibration.effects import output_changes
from fxprune.calibration.taps import check_tap_rule
from fxprune.criteria.base import Problem, QueueSelection, Selection, criterion, removal_order
from fxprune.criteria.features import MapCriterion, PairMean, normalised_entropies
from fxprune.criteria.judging import Study
from fxprune.criteria.rows import channel_rows, producers, settled
from fxprune.errors import CriterionError, check_choice, check_count, check_share
from fxprune.util.registry import Named

Order = Mapping[Group, IndexArray]
_GRID = 9


@criterion("multi_source")
@dataclass(frozen=True)
class MultiSource(Named, MapCriterion):
    """Correlation of feature maps and entropy of weights in a layer; sets of filters judged by the model's output.

    Xiu et al., Microelectronics & Computer 39(9):1-10, doi 10.19304/J.ISSN1000-7180.2022.0163. Only the outline in the
    abstract is followed: relative importance from the correlation between features, absolute importance from the
    entropy of weights, and sets of filters of one layer at several ratios, judged by their effect on the whole model.
    Chosen here: the magnitude of the Pearson correlation of maps over positions, averaged over samples; the histogram
    entropy of a filter's weights over the range of its layer; both scaled to [0, 1] and fused; sets at ratios 0.1 to
    0.9, whose effect is the divergence of the output. The next set is always the one with the least effect per saved
    cost. For coupled layers, scores are averaged.

    ``global_mode="sets"`` makes a second pass over the calibration data, with nine masked runs per group and batch;
    "rank" sorts all fused scores together instead.

    Args:
        alpha: the share of the feature score in the fusion.
        fusion: "sum" (``alpha R + (1 - alpha) A``) or "product".
        bins: the number of bins in the weights' histogram.
        global_mode: "sets" or "rank".
        tap: where maps are read, see :mod:`fxprune.calibration.taps`.

    Raises:
        CriterionError: an argument is none of these.
    """

    alpha: float = 0.5
    fusion: str = "sum"
    bins: int = 10
    global_mode: str = "sets"
    tap: str = "normalised"

    def __post_init__(self) -> None:
        check_tap_rule(self.tap)
        check_share(CriterionError, "alpha", self.alpha)
        check_choice(CriterionError, "fusion", self.fusion, ("sum", "product"))
        check_choice(CriterionError, "global_mode", self.global_mode, ("sets", "rank"))
        check_count(CriterionError, "bins", self.bins, 2)

    def statistic(self, channels: int) -> PairMean:
        """Mean correlations."""
        return PairMean(channels, correlation)

    def score_observed(
        self, group: Group, observed: Any, tensors: Mapping[str, Tensor], graph: ChannelGraph
    ) -> FloatArray | None:
        """The fused scores, shape ``(group.size,)``; None if nothing was observed."""
        if not observed:
            return None
        relative = np.mean([uniqueness(s.result()) for s in observed], axis=0)
        members = producers(group, tensors, graph)
        rows = [channel_rows(tensors[m.tensor], m, group.variable).cpu() for m in members]
        absolute = np.mean([weight_entropy(r, self.bins) for r in rows], axis=0)
        return self.fused(relative, absolute)

    def fused(self, relative: FloatArray, absolute: FloatArray) -> FloatArray:
        """Both scores, scaled to [0, 1] in the layer (0.5 if all are equal) and fused."""
        relative, absolute = (normalised_entropies(values, "minmax") for values in (relative, absolute))
        if self.fusion == "product":
            return relative * absolute
        return self.alpha * relative + (1 - self.alpha) * absolute

    def select(self, study: Study) -> Selection:
        """The queue of sets, or of single filters in rank mode."""
        scores = study.scores(self)
        if self.global_mode == "rank":
            return QueueSelection(scores, lambda problem: _by_rank(problem, scores))
        order = {group: removal_order(values) for group, values in scores.items()}
        sets = [(g, order[g][: _removed_count(g, step)]) for g in order for step in range(1, _GRID + 1)]
        changes = output_changes(study.collector(self.name), sets).reshape(len(order), _GRID)
        effects = dict(zip(order, changes, strict=True))
        return QueueSelection(scores, lambda problem: _by_sets(problem, order, effects))


def correlation(maps: Tensor) -> Tensor:
    """Magnitudes of Pearson correlation between the maps (channels, positions) of two channels.

    A map without variance correlates fully with all others.
    """
    maps = maps.to(torch.float64)
    centred = maps - maps.mean(1, keepdim=True)
    norms = centred.norm(dim=1)
    still = norms <= 1e-12 * maps.norm(dim=1)
    unit = centred / torch.where(still, 1.0, norms).unsqueeze(1)
    found = (unit @ unit.T).abs()
    found[still] = 1.0
    found[:, still] = 1.0
    return found


def uniqueness(similar: FloatArray) -> FloatArray:
    """One minus the mean correlation with the other channels: 1 = irreplaceable. A single channel scores 1."""
    count = len(similar)
    if count == 1:
        return np.ones(1)
    others = similar.sum(axis=1) - np.diag(similar)
    return settled(1 - others / (count - 1))


def weight_entropy(rows: Tensor, bins: int = 10) -> FloatArray:
    """Entropy of each filter's weights, in bins over the range of all filters: (filters, weights) to (filters,)."""
    values = rows.to(torch.float64).numpy()
    low, high = values.min(), values.max()
    if low == high:
        return np.zeros(len(values))
    # A weight on the edge of two bins belongs to the upper one, regardless of rounding errors.
    place = np.minimum(np.floor((values - low) / (high - low) * bins + 1e-6), bins - 1).astype(np.int64)
    counts = np.stack([np.bincount(row, minlength=bins) for row in place])
    shares = counts / values.shape[1]
    entropy: FloatArray = -np.sum(shares * np.log(np.where(shares > 0, shares, 1.0)), axis=1)
    return entropy + 0.0


def _removed_count(group: Group, step: int) -> int:
    return group.size * step // (_GRID + 1)


def _by_rank(problem: Problem, scores: Mapping[Group, FloatArray]) -> Sequence[tuple[Group, int]]:
    channels = [(float(scores[g][u]), n, -int(u)) for n, g in enumerate(problem.groups) for u in range(g.size)]
    return [(problem.groups[n], -u) for _, n, u in sorted(channels)]


def _by_sets(problem: Problem, order: Order, effects: Mapping[Group, FloatArray]) -> Sequence[tuple[Group, int]]:
    """The order of the grid's steps: always the next step of the group that changes the output least per saved cost."""
    queue: list[tuple[Group, int]] = []
    steps = {g: _steps(problem, g, order[g], effects[g]) for g in problem.groups}
    heap = [(steps[g][0][0], n, 0) for n, g in enumerate(problem.groups) if steps[g]]
    heapq.heapify(heap)
    while heap:
        _, number, step = heapq.heappop(heap)
        group = problem.groups[number]
        queue.extend((group, int(channel)) for channel in steps[group][step][1])
        if step + 1 < len(steps[group]):
            heapq.heappush(heap, (steps[group][step + 1][0], number, step + 1))
    return queue


def _steps(problem: Problem, group: Group, order: IndexArray, effects: FloatArray) -> list[tuple[float, IndexArray]]:
    """For each step of the grid: the change of the output per unit of saved cost, and the channels that it removes."""
    found: list[tuple[float, IndexArray]] = []
    gone, saved, effect = 0, 0.0, 0.0
    for step in range(1, _GRID + 1):
        until = min(_removed_count(group, step), group.size - problem.fewest(group))
        if until <= gone:
            continue
        total = problem.saved({group: group.without(order[:until])})
        price = (effects[step - 1] - effect) / (total - saved) if total > saved else np.inf
        found.append((float(price), order[gone:until]))
        gone, saved, effect = until, total, float(effects[step - 1])
    return found
