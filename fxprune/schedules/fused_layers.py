"""Layers that run narrow while they hold, and train, all of their filters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fxprune.criteria.information_fusion import divergence_importance, fusion_shares, log_similarity_distributions
from fxprune.criteria.rows import settled
from fxprune.model_paths import attribute
from fxprune.schedules.agreeing import agreed_values

__all__ = ["FusedGroup", "FusedRows", "fuse_rows"]


class FusedRows(nn.Module):
    """A parametrisation: what the layer uses is ``shares @ rows``, and the rows are what is trained.

    Args:
        rows: all rows, ``(filters, ...)``, which the layer holds from now on.
        kept: how many the layer uses.
    """

    shares: Tensor

    def __init__(self, rows: Tensor, kept: int) -> None:
        super().__init__()
        self.register_buffer("shares", rows.new_zeros((kept, len(rows))))
        self._rows: Tensor | None = rows

    def forward(self, rows: Tensor) -> Tensor:
        """All rows ``(filters, ...)`` to the fused ones ``(kept, ...)``."""
        return (self.shares @ rows.reshape(len(rows), -1)).reshape(-1, *rows.shape[1:])

    def right_inverse(self, _: Tensor) -> Tensor:
        """What the layer holds in the place of its narrow tensor: all rows."""
        rows, self._rows = self._rows, None
        assert rows is not None, "a narrow tensor does not tell the rows that it was fused from"
        return rows


def fuse_rows(network: nn.Module, name: str, rows: Tensor) -> None:
    """Let a parameter of a narrow network be made from ``rows``, in place."""
    path, _, leaf = name.rpartition(".")
    narrow = attribute(network, name)
    with torch.no_grad():
        layer = FusedRows(rows.detach().clone().to(narrow), len(narrow))
    # unsafe: for torch, a parametrisation that changes a shape is; it checks nothing then.
    parametrize.register_parametrization(network.get_submodule(path), leaf, layer, unsafe=True)


@dataclass
class FusedGroup:
    """The layers of one channel group, all fused by the same shares.

    Attributes:
        name: of the group.
        kernels: parameters by whose rows filters are compared, those of coupled layers side by side.
        biases: parameters that are fused with them.
        width: how many filters stay.
        kept: which ones, ascending.
    """

    name: str
    kernels: tuple[str, ...]
    biases: tuple[str, ...]
    width: int
    kept: tuple[int, ...] = field(default=())

    def choose(self, filters: Sequence[Tensor], temperature: float) -> Tensor:
        """Rank the filters, note which ones stay, and return what filters are compared by: ``(filters, features)``."""
        rows = torch.cat([f.detach().reshape(len(f), -1).to("cpu", torch.float64) for f in filters], dim=1)
        rows = agreed_values(rows)
        scores = settled(divergence_importance(log_similarity_distributions(rows, temperature)).numpy())
        # Ascending indices, so that channels, and the statistics of their batch norms, keep their order.
        self.kept = tuple(sorted(np.argsort(-scores, kind="stable")[: self.width].tolist()))
        return rows

    @torch.no_grad()
    def refresh(self, network: nn.Module, temperature: float, beta: float, fusion: str) -> None:
        """New shares for the filters as they are now, in place."""
        found = [_parametrisation(network, name) for name in (*self.kernels, *self.biases)]
        rows = self.choose([filters for filters, _ in found[: len(self.kernels)]], temperature)
        shares = fusion_shares(rows, self.kept, temperature, beta, fusion)
        for _, layer in found:
            layer.shares.copy_(shares)


def _parametrisation(network: nn.Module, name: str) -> tuple[Tensor, FusedRows]:
    """All rows of a parameter, and what makes it from them."""
    path, _, leaf = name.rpartition(".")
    held = attribute(network, f"{path}.parametrizations".lstrip("."))[leaf]
    layer, rows = held[0], held.original
    assert isinstance(layer, FusedRows)
    return rows, layer
