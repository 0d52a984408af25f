"""Information fusion between filters (Qu et al. 2022, "APBM"; formulation of DCFF, Lin et al., arXiv 2107.06916)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph
from fxprune.criteria.base import FloatArray, criterion, normaliser_by_name
from fxprune.criteria.rows import distances, producer_rows, settled
from fxprune.errors import CriterionError
from fxprune.util.registry import Named


@criterion("information_fusion")
@dataclass(frozen=True)
class InformationFusion(Named):
    """How much a filter's distribution of similarities to the others differs from theirs.

    Qu et al., Computer Engineering and Applications 58(24):125-133: ``P[i] = softmax(-distance * temperature)`` over
    the filters of a layer, and a filter's importance is the sum over the others of the relative entropy between their
    distributions, here in the log domain, where it is always finite. The paper's text does not settle the distance, the
    temperature nor the identity with DCFF, which is what is implemented. What the removed filters hold can be put into
    the kept ones with :func:`fused_filters`. The filters of coupled layers are laid side by side.

    Args:
        temperature: sharpness of the distributions; the higher, the nearer the order comes to that of FPGM. In training
            it follows :func:`temperature_at`.
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
        """Scores of shape ``(group.size,)``."""
        logs = log_similarity_distributions(producer_rows(group, tensors, graph), self.temperature)
        return normaliser_by_name(self.normalise)(settled(divergence_importance(logs).numpy()))


def log_similarity_distributions(filters: Tensor, temperature: float = 1.0) -> Tensor:
    """``log P``: row i says how similar filter i is to each filter; (filters, features) to (filters, filters)."""
    return torch.log_softmax(-distances(filters) * temperature, dim=1)


def divergence_importance(logs: Tensor) -> Tensor:
    """``sum over g of KL(P[i], P[g]) / N`` from log distributions (filters, filters); high = unlike the others."""
    shares = logs.exp()
    entropy = (shares * logs).sum(1)
    # sum_g sum_k P_ik (L_ik - L_gk) without the cube of all three.
    return entropy - shares @ logs.mean(0)


def fused_filters(
    filters: Tensor,
    kept: Sequence[int] | Tensor,
    temperature: float = 1.0,
    beta: float = 1.0,
    fusion: str = "proxy",
    compared: Tensor | None = None,
) -> Tensor:
    """The kept filters with what is similar in the others mixed in.

    The proportion ``beta`` and its form are not settled by the paper's text; ``beta=1`` with "proxy" is DCFF, equation
    8, ``beta=0`` plain selection.

    Args:
        filters: ``(filters, ...)``, for example a convolution's weight.
        kept: indices of the filters that stay.
        temperature: as in :class:`InformationFusion`.
        beta: proportion of what is mixed in.
        fusion: "proxy", ``(1 - beta) w_i + beta sum_j P_ij w_j``, or "residual", ``w_i + beta sum_j P_ij w_j`` over the
            removed filters j alone.
        compared: ``(filters, features)``, by which filters are compared: those of all coupled layers side by side where
            each is fused by the same shares; by default ``filters`` themselves.

    Returns:
        ``(kept, ...)``, in the order of ``kept`` and the type of ``filters``.

    Raises:
        CriterionError: an unknown fusion, or no proportion.
    """
    index = torch.as_tensor(kept, dtype=torch.long)
    rows = filters.detach().reshape(len(filters), -1).to(torch.float64)
    shares = fusion_shares(rows if compared is None else compared, index, temperature, beta, fusion)
    return (shares.to(rows.device) @ rows).reshape(len(index), *filters.shape[1:]).to(filters.dtype)


def fusion_shares(
    compared: Tensor, kept: Sequence[int] | Tensor, temperature: float = 1.0, beta: float = 1.0, fusion: str = "proxy"
) -> Tensor:
    """How much of every filter goes into each kept one: float64, ``(kept, filters)``; see :func:`fused_filters`.

    Raises:
        CriterionError: an unknown fusion, or no proportion.
    """
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
    """The proportion (0 to 1) and the form of a fusion. Raises CriterionError for others."""
    if fusion not in ("proxy", "residual"):
        raise CriterionError(f'fusion must be "proxy" or "residual", not {fusion!r}')
    if isinstance(beta, (bool, str)) or not 0 <= beta <= 1:
        raise CriterionError(f"beta must be a number between 0 and 1, not {beta!r}")
    return float(beta), fusion


def temperature_at(epoch: int, epochs: int, *, start: float = 1.0, end: float = 10000.0, kappa: float = 1.0) -> float:
    """The temperature of a training epoch, from ``start`` at epoch 0 to ``end`` at epoch ``epochs`` (DCFF, equation 7).

    The published ``kappa`` of 1 makes distributions practically one-hot from epoch 1 on; ``10 / epochs`` is gentler.
    """
    decay = math.exp(-kappa * epochs)
    amplitude = 2 * (end - start) * (1 + decay) / (1 - decay)
    return amplitude / (1 + math.exp(-kappa * epoch)) + start - amplitude / 2
