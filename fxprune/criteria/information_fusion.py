"""Filters compared with one another: information fusion (Qu et al. 2022, "APBM"; formulation of DCFF, Lin et al., arXiv
2107.06916), and filter similarity (Wu et al. 2023, "Model pruning based on filter similarity for edge device
deployment").
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import FloatArray
from fxprune.criteria.base import Problem, QueueSelection, Selection, criterion, normaliser_by_name
from fxprune.criteria.judging import Study
from fxprune.criteria.rows import distances, producer_rows, settled
from fxprune.errors import CriterionError, check_choice, check_share
from fxprune.util.registry import Named


@criterion("information_fusion")
@dataclass(frozen=True)
class InformationFusion(Named):
    """How much a filter's distribution of similarities to the others differs from theirs.

    Qu et al., Computer Engineering and Applications 58(24):125-133: ``P[i] = softmax(-distance * temperature)`` over
    the filters of a layer, and a filter's importance is the sum over the others of the relative entropy between their
    distributions, here in the log domain, where it is always finite. The paper does not define the distance or the
    temperature, nor say whether it equals DCFF; DCFF is implemented. :func:`fused_filters` mixes the removed filters
    into the kept ones. The filters of coupled layers are concatenated.

    Args:
        temperature: sharpness of the distributions; the higher it is, the closer the order is to that of FPGM. In
            training it follows :func:`temperature_at`.
        normalise: see :class:`~fxprune.criteria.weights.Magnitude`.

    Raises:
        CriterionError: the temperature is not above 0, or the normaliser unknown.
    """

    temperature: float = 1.0
    normalise: str = "mean"

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise CriterionError(f"temperature must be above 0, not {self.temperature!r}")
        normaliser_by_name(self.normalise)

    def score(self, group: Group, tensors: Mapping[str, Tensor], graph: ChannelGraph) -> FloatArray:
        logs = log_similarity_distributions(producer_rows(group, tensors, graph), self.temperature)
        return normaliser_by_name(self.normalise)(settled(divergence_importance(logs).numpy()))


def log_similarity_distributions(filters: Tensor, temperature: float = 1.0) -> Tensor:
    """``log P``: row i says how similar filter i is to each filter; (filters, features) to (filters, filters)."""
    return torch.log_softmax(-distances(filters) * temperature, dim=1)


def divergence_importance(logs: Tensor) -> Tensor:
    """``sum over g of KL(P[i], P[g]) / N`` from log distributions (filters, filters); high = unlike the others."""
    shares = logs.exp()
    entropy = (shares * logs).sum(1)
    # sum_g sum_k P_ik (L_ik - L_gk) without a tensor of all (i, g, k).
    return entropy - shares @ logs.mean(0)


def fused_filters(
    filters: Tensor,
    kept: Sequence[int] | Tensor,
    temperature: float = 1.0,
    beta: float = 1.0,
    fusion: str = "proxy",
    compared: Tensor | None = None,
) -> Tensor:
    """The kept filters, with the others mixed in by similarity.

    The paper does not define the proportion ``beta`` and its form; ``beta=1`` with "proxy" is DCFF, equation 8, and
    ``beta=0`` is plain selection.

    Args:
        filters: ``(filters, ...)``, for example a convolution's weight.
        kept: indices of the filters that stay.
        temperature: as in :class:`InformationFusion`.
        beta: the proportion that is mixed in.
        fusion: "proxy", ``(1 - beta) w_i + beta sum_j P_ij w_j``, or "residual", ``w_i + beta sum_j P_ij w_j`` over the
            removed filters j alone.
        compared: ``(filters, features)``, the rows by which filters are compared: for coupled layers, which share their
            shares, the filters of all concatenated; by default ``filters`` themselves.

    Returns:
        ``(kept, ...)``, in the order of ``kept`` and the type of ``filters``.

    Raises:
        CriterionError: the fusion is unknown, or ``beta`` is not between 0 and 1.
    """
    index = torch.as_tensor(kept, dtype=torch.long)
    rows = filters.detach().reshape(len(filters), -1).to(torch.float64)
    shares = fusion_shares(rows if compared is None else compared, index, temperature, beta, fusion)
    return (shares.to(rows.device) @ rows).reshape(len(index), *filters.shape[1:]).to(filters.dtype)


def fusion_shares(
    compared: Tensor, kept: Sequence[int] | Tensor, temperature: float = 1.0, beta: float = 1.0, fusion: str = "proxy"
) -> Tensor:
    """The shares (kept, filters), float64, of all filters in the kept ones, as for :func:`fused_filters`."""
    beta, fusion = check_fusion(beta, fusion)
    similar = log_similarity_distributions(compared, temperature).exp()
    index = torch.as_tensor(kept, dtype=torch.long, device=similar.device)
    chosen = torch.eye(len(similar), dtype=similar.dtype, device=similar.device)[index]
    shares = similar[index]
    if fusion == "residual":
        shares[:, index] = 0
        return chosen + beta * shares
    return (1 - beta) * chosen + beta * shares


def check_fusion(beta: float, fusion: str) -> tuple[float, str]:
    """The proportion (0 to 1) and the form of a fusion, checked. Raises CriterionError: one is invalid."""
    check_choice(CriterionError, "fusion", fusion, ("proxy", "residual"))
    check_share(CriterionError, "beta", beta)
    return float(beta), fusion


def temperature_at(epoch: int, epochs: int, *, start: float = 1.0, end: float = 10000.0, kappa: float = 1.0) -> float:
    """The temperature of a training epoch, from ``start`` at epoch 0 to ``end`` at epoch ``epochs`` (DCFF, equation 7).

    The published ``kappa`` of 1 makes distributions practically one-hot from epoch 1 on; ``10 / epochs`` is gentler.
    """
    decay = math.exp(-kappa * epochs)
    amplitude = 2 * (end - start) * (1 + decay) / (1 - decay)
    return amplitude / (1 + math.exp(-kappa * epoch)) + start - amplitude / 2


Removal = tuple[float, float, int, int, int]
"""The sort key of a removal in the global queue: ``-z, -s`` of the pair, its two filters, and the one removed."""


@criterion("filter_similarity")
@dataclass(frozen=True)
class FilterSimilarity(Named):
    """One global queue of pairs of similar filters; one filter of the most similar remaining pair is removed.

    Wu et al., Frontiers in Neurorobotics 17 (2023), doi 10.3389/fnbot.2023.1132679: filters are compared pairwise in a
    layer, with a target for the whole network and no rate per layer. The paper does not define the similarity, its
    standardisation across layers, which filter of a pair is removed, and how many must stay. Here these are the cosine,
    the z-score of a layer's similarities, the one that is more similar to the other remaining filters (the higher index
    among equals), and ``keep_share``. The knob is the number of removed filters. The filters of coupled layers are
    concatenated.

    Args:
        metric: "cosine", "absolute" (its magnitude) or "euclidean" (``1 / (1 + distance)``).
        normalize: "zscore" or "none".
        keep_share: at least this share of a group's filters stays.

    Raises:
        CriterionError: an argument is none of these.
    """

    metric: str = "cosine"
    normalize: str = "zscore"
    keep_share: float = 0.05

    def __post_init__(self) -> None:
        check_choice(CriterionError, "metric", self.metric, ("cosine", "absolute", "euclidean"))
        check_choice(CriterionError, "normalize", self.normalize, ("zscore", "none"))
        check_share(CriterionError, "keep_share", self.keep_share)

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
    """Similarities as z-scores over all pairs. Without spread they are 0, except that a similarity of 1 is infinite."""
    pairs = similar[np.triu_indices(len(similar), 1)]
    spread = float(pairs.std()) if len(pairs) else 0.0
    if spread == 0:
        return np.where(similar == 1, np.inf, 0.0)
    scores: FloatArray = (similar - pairs.mean()) / spread
    return scores


def pair_removals(similar: FloatArray, order: FloatArray, fewest: int) -> list[Removal]:
    """The filters of a layer in order of removal, until ``fewest`` are left.

    Each step takes the remaining pair of the highest ``order`` (then the highest similarity, then the lowest indices),
    and removes the one with the larger sum of similarities to the other remaining ones (then the higher index).
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
    """The first pair from ``place`` on whose filters both remain; there is one while two filters remain."""
    step = 64
    while True:
        both = alive[left[place : place + step]] & alive[right[place : place + step]]
        if both.any():
            return place + int(np.argmax(both))
        place += step
        step *= 2


def _places(size: int, victims: Sequence[int]) -> FloatArray:
    """The position of each filter in the order of removal, scaled; filters that stay come last."""
    places = np.full(size, float(len(victims)))
    places[list(victims)] = np.arange(len(victims))
    return places / max(size, 1)
