"""Criteria by the spectrum of feature maps: HRank and CHIP."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.criteria.features import FeatureCriterion, flat

__all__ = ["CHIP", "HRank", "nuclear_norm_changes"]

_ELEMENTS = 1 << 22  # of the matrices decomposed at a time


@dataclass(frozen=True)
class HRank(FeatureCriterion):
    """The mean matrix rank of the maps (Lin et al., 2020, arXiv 2002.10179, equation 5).

    A map of more than two dims is a matrix of its last dim and the rest, one of a single dim a matrix of one row.
    """

    tap: str = "activated"

    @property
    def name(self) -> str:
        """The registered name."""
        return "hrank"

    def measure(self, maps: Tensor) -> Tensor:
        """The rank of each map."""
        wide = maps if maps.dtype == torch.float64 else maps.to(torch.float32)
        last = wide.shape[-1] if wide.ndim > 2 else 1
        ranks: Tensor = torch.linalg.matrix_rank(wide.reshape(*wide.shape[:2], -1, last))
        return ranks.to(torch.float64)


@dataclass(frozen=True)
class CHIP(FeatureCriterion):
    """Channel independence: how much the nuclear norm of all maps drops when one is zeroed.

    Sui et al., 2021, arXiv 2110.13981, equation 3. It decomposes one matrix for each channel of each sample, which
    takes long where layers are wide; a few dozen samples have to do.

    Args:
        decimals: maps are rounded to so many decimals, as the authors' code does; None for no rounding.
    """

    tap: str = "activated"
    decimals: int | None = 4

    @property
    def name(self) -> str:
        """The registered name."""
        return "chip"

    def measure(self, maps: Tensor) -> Tensor:
        """The change of the nuclear norm for each channel."""
        values = flat(maps).to(torch.float64)
        rounded = values if self.decimals is None else values.round(decimals=self.decimals)
        return torch.stack([nuclear_norm_changes(sample) for sample in rounded])


def nuclear_norm_changes(rows: Tensor) -> Tensor:
    """``nuc(X) - nuc(X with row i zeroed)`` for every row i of X, shape ``(rows, columns)``; gives ``(rows,)``.

    Singular values come from the smaller Gram matrix: a zeroed row is a row and a column less of ``X X'``, or a product
    of one row less of ``X' X``.
    """
    count, columns = rows.shape
    if count <= columns:
        gram = rows @ rows.T
        stays = ~torch.eye(count, dtype=torch.bool, device=rows.device)
        without = [stays[i].nonzero().squeeze(1) for i in range(count)]
        parts = (gram[index][:, index] for index in without)
    else:
        gram = rows.T @ rows
        parts = (gram - torch.outer(row, row) for row in rows)
    total = _nuclear_norm(gram.unsqueeze(0))
    step = max(1, _ELEMENTS // max(1, gram.numel()))
    left: list[Tensor] = []
    pending: list[Tensor] = []
    for part in parts:
        pending.append(part)
        if len(pending) == step:
            left.append(_nuclear_norm(torch.stack(pending)))
            pending = []
    if pending:
        left.append(_nuclear_norm(torch.stack(pending)))
    return total - torch.cat(left)


def _nuclear_norm(grams: Tensor) -> Tensor:
    if grams.shape[-1] == 0:
        return grams.new_zeros(len(grams))
    energies: Tensor = torch.linalg.eigvalsh(grams)
    # What is below the rounding of the largest is zero; its root would not look like it.
    floor = 1e-13 * energies.amax(-1, keepdim=True)
    return torch.where(energies > floor, energies, 0.0).sqrt().sum(-1)
