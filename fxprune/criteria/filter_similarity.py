"""Filter similarity (Wu et al. 2023, "Model pruning based on filter similarity for edge device deployment")."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxprune.analysis.groups import Group
from fxprune.criteria.base import FloatArray, Problem, QueueSelection, Selection, Study, criterion
from fxprune.criteria.rows import distances, producer_rows, settled
from fxprune.errors import CriterionError
from fxprune.util.registry import Named

Removal = tuple[float, float, int, int, int]
"""What puts a removal in the global queue: ``-z, -s`` of the pair, its two filters, and the one that goes."""


@criterion("filter_similarity")
@dataclass(frozen=True)
class FilterSimilarity(Named):
    """One global queue of pairs of similar filters; of the most similar pair alive, one filter goes.

    Wu et al., Frontiers in Neurorobotics 17 (2023), doi 10.3389/fnbot.2023.1132679: filters are compared pairwise in a
    layer, no rate is given per layer, only a target for the whole network. The paper's text does not settle the measure
    of similarity, its standardisation across layers, which of a pair goes, nor how many must stay; here these are
    cosine, the z-score of a layer's similarities, the one that is more similar to the other filters alive (the higher
    index among equals), and ``keep_share``. The knob is how many filters have gone. The filters of coupled layers are
    laid side by side.

    Args:
        metric: "cosine", "absolute" (its magnitude) or "euclidean" (``1 / (1 + distance)``).
        normalize: "zscore" or "none".
        keep_share: this share of a group's filters stays at least.

    Raises:
        CriterionError: an argument is none of these.
    """

    metric: str = "cosine"
    normalize: str = "zscore"
    keep_share: float = 0.05

    def __post_init__(self) -> None:
        if self.metric not in ("cosine", "absolute", "euclidean"):
            raise CriterionError(f"metric must be cosine, absolute or euclidean, not {self.metric!r}")
        if self.normalize not in ("zscore", "none"):
            raise CriterionError(f"normalize must be zscore or none, not {self.normalize!r}")
        if not 0 <= self.keep_share <= 1:
            raise CriterionError(f"keep_share must be between 0 and 1, not {self.keep_share!r}")

    def select(self, study: Study) -> Selection:
        """The queue of all groups that may be narrowed."""
        removals = {g: self._removals(producer_rows(g, study.tensors, study.graph)) for g in study.graph.groups}
        preference = {g: _places(g.size, [removal[-1] for removal in found]) for g, found in removals.items()}

        def queue(problem: Problem) -> Sequence[tuple[Group, int]]:
            streams = ([(*r[:2], n, *r[2:]) for r in removals[g]] for n, g in enumerate(problem.groups))
            return [(problem.groups[entry[2]], entry[-1]) for entry in heapq.merge(*streams)]

        return QueueSelection(preference, queue)

    def _removals(self, rows: Tensor) -> list[Removal]:
        similar = similarities(rows, self.metric)
        order = standardised(similar) if self.normalize == "zscore" else similar
        return pair_removals(similar, order, max(1, math.ceil(self.keep_share * len(similar))))


def similarities(rows: Tensor, metric: str = "cosine") -> FloatArray:
    """Pairwise similarities (filters, filters) of rows; a filter of zeros is similar to all others."""
    if metric == "euclidean":
        found: FloatArray = (1 / (1 + distances(rows))).numpy()
        return settled(found.reshape(-1)).reshape(found.shape)
    rows = rows.to(torch.float64)
    norms = rows.norm(dim=1)
    cosine = (rows @ rows.T) / (norms[:, None] * norms[None, :] + 1e-12)
    cosine[norms == 0] = 1.0
    cosine[:, norms == 0] = 1.0
    values: FloatArray = (cosine.abs() if metric == "absolute" else cosine).numpy()
    return np.round(values, 11)


def standardised(similar: FloatArray) -> FloatArray:
    """Similarities as z-scores of those of all pairs. Without spread they are 0, and those of 1 infinite."""
    pairs = similar[np.triu_indices(len(similar), 1)]
    spread = float(pairs.std()) if len(pairs) else 0.0
    if spread == 0:
        return np.where(similar == 1, np.inf, 0.0)
    scores: FloatArray = (similar - pairs.mean()) / spread
    return scores


def pair_removals(similar: FloatArray, order: FloatArray, fewest: int) -> list[Removal]:
    """The filters of a layer in the order in which they go, until ``fewest`` are left.

    Again and again the alive pair of the highest ``order`` (then the highest similarity, then the lowest indices) gives
    up the member with the larger sum of similarities to the others alive, the higher index among equals.
    """
    count = len(similar)
    left, right = np.triu_indices(count, 1)
    keys = -order[left, right], -similar[left, right]
    queue = np.lexsort((right, left, keys[1], keys[0]))
    left, right = left[queue], right[queue]
    alive = np.ones(count, dtype=np.bool_)
    totals = similar.sum(axis=1) - np.diag(similar)
    found: list[Removal] = []
    place = 0
    while count - len(found) > fewest:
        place = _next_alive(alive, left, right, place)
        i, j = int(left[place]), int(right[place])
        victim = j if totals[j] >= totals[i] - 1e-9 else i
        found.append((float(-order[i, j]), float(-similar[i, j]), i, j, victim))
        alive[victim] = False
        totals -= similar[victim]
    return found


def _next_alive(alive: NDArray[np.bool_], left: NDArray[np.intp], right: NDArray[np.intp], place: int) -> int:
    """The first pair from ``place`` on of which both are alive; there is one while two are alive."""
    step = 64
    while True:
        both = alive[left[place : place + step]] & alive[right[place : place + step]]
        if both.any():
            return place + int(np.argmax(both))
        place += step
        step *= 2


def _places(size: int, victims: Sequence[int]) -> FloatArray:
    """The place at which each filter goes, and after all of them for those that stay."""
    places = np.full(size, float(len(victims)))
    places[list(victims)] = np.arange(len(victims))
    return places / max(size, 1)
