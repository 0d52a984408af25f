"""Weights as one row per channel, and distances between rows."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxprune.axes.elements import owned_by
from fxprune.axes.expressions import Channels
from fxprune.criteria.base import FloatArray, ScoredGraph
from fxprune.criteria.sums import fold
from fxprune.groups import Group, Member

__all__ = [
    "distances",
    "parameter_members",
    "producer_rows",
    "producers",
    "scoped_members",
    "settled",
    "unit_rows",
    "unit_totals",
]


def parameter_members(group: Group, graph: ScoredGraph) -> list[Member]:
    """The group's members that are parameters."""
    return [m for m in group.members if m.tensor in graph.parameter_names]


def producers(group: Group, tensors: Mapping[str, Tensor], graph: ScoredGraph) -> list[Member]:
    """The members whose rows make the group's channels.

    A filter is a kernel; a bias is a row of it only where there is nothing else.
    """
    members = parameter_members(group, graph)
    made = [m for m in members if m.role == "out"]
    kernels = [m for m in made if tensors[m.tensor].ndim > 1]
    return kernels or made or members


def scoped_members(scope: str, group: Group, tensors: Mapping[str, Tensor], graph: ScoredGraph) -> list[Member]:
    """All parameters of a group for the scope "group", those that make its channels for "producer"."""
    return parameter_members(group, graph) if scope == "group" else producers(group, tensors, graph)


def unit_rows(tensor: Tensor, member: Member, variable: Channels) -> Tensor:
    """What each unit owns of a tensor dim, flattened: float64, shape ``(units, features)``.

    Units that own fewer elements than others are filled up with zeros.
    """
    rows = tensor.detach().movedim(member.dim, 0)
    rows = rows.reshape(rows.shape[0], -1).to(torch.float64)
    units, elements = owned_by(member.axis, variable)
    counts = np.bincount(units, minlength=variable.size)
    place = np.arange(len(units)) - np.repeat(np.cumsum(counts) - counts, counts)
    held = rows.new_zeros((variable.size, int(counts.max()), rows.shape[1]))
    at = (torch.from_numpy(units).to(rows.device), torch.from_numpy(place).to(rows.device))
    held[at] = rows[torch.from_numpy(elements).to(rows.device)]
    return held.reshape(variable.size, -1)


def producer_rows(group: Group, tensors: Mapping[str, Tensor], graph: ScoredGraph) -> Tensor:
    """The filters of a group, those of coupled producers side by side: float64, shape ``(units, features)``."""
    members = producers(group, tensors, graph)
    return torch.cat([unit_rows(tensors[m.tensor], m, group.variable).cpu() for m in members], dim=1)


def unit_totals(tensor: Tensor, member: Member, variable: Channels) -> FloatArray:
    """The sum of everything that each unit owns of a tensor dim. Shape ``(units,)``."""
    others = [d for d in range(tensor.ndim) if d != member.dim]
    sums = tensor.detach().to(torch.float64)
    sums = sums.sum(others) if others else sums
    return fold(member.axis, sums.cpu().numpy())[variable]


def distances(rows: Tensor) -> Tensor:
    """Euclidean distances between the rows of ``(..., units, features)``, from Gram matrices in float64.

    Rows that differ by less than a millionth of their norms are equal, because a Gram matrix tells no more.
    """
    rows = rows.to(torch.float64)
    rows = rows - rows.mean(dim=-2, keepdim=True)
    gram = rows @ rows.mT
    energy = gram.diagonal(dim1=-2, dim2=-1)
    pair = energy.unsqueeze(-1) + energy.unsqueeze(-2)
    squared = pair - 2 * gram
    return torch.where(squared > 1e-12 * pair, squared, 0.0).sqrt()


def settled(values: NDArray[np.float64]) -> FloatArray:
    """The values without the last few digits, so that equal channels have equal scores whatever their place."""
    scale = float(np.abs(values).max()) if len(values) else 0.0
    if not 1e-250 < scale < 1e250:
        return values
    return np.round(values, 11 - math.floor(math.log10(scale)))
