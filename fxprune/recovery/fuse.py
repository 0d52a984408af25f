"""Removed channels merged into the most similar kept ones, without data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.analysis.groups import Group, Member
from fxprune.axes.elements import FloatArray, Mask, channels_of, is_elementwise
from fxprune.axes.expressions import IndexArray, variables
from fxprune.calibration import LayerRows, TapFinder
from fxprune.criteria.rows import channel_rows, producers
from fxprune.errors import RecoveryError, check_share
from fxprune.recovery.base import Work, recovery
from fxprune.reporting import RecoveryRow
from fxprune.util.paths import ModelPaths, attribute
from fxprune.util.registry import Named


@recovery("fuse")
@dataclass(frozen=True)
class Fuse(Named):
    """Adds a removed channel's weights in the layers that read it to those of the nearest kept channel.

    The nearest channel is the one with the largest cosine between the filters (biases included, a following batch norm
    folded in). The added weights are multiplied by the projection of the removed filter on the kept one. If the filters
    are equal up to a positive factor, the result is exact through ReLU (Srinivas and Babu, 2015, arXiv 1507.06149,
    section 3). Training with information fusion also makes filters that can be merged by similarity.

    Args:
        least_similarity: removed channels whose nearest filter has a smaller cosine are not merged.

    Raises:
        RecoveryError: ``least_similarity`` is not between 0 and 1.
    """

    least_similarity: float = 0.3

    def __post_init__(self) -> None:
        check_share(RecoveryError, "least_similarity", self.least_similarity)

    def recover(self, work: Work) -> RecoveryRow:
        """Rewrite weights of the layers that read cut groups."""
        finder, masks = TapFinder(work.graph), work.masks
        shares: dict[str, list[tuple[Member, Group, Tensor]]] = {}
        for group in work.graph.groups:
            mask = masks[group.variable]
            if mask.all():
                continue
            merged = nearest_kept(_filters(group, work), mask, self.least_similarity)
            for call, _, name in finder.consumers(group) if bool(merged.any()) else ():
                member = next(m for m in group.members if m.tensor == name and m.role == "in")
                if LayerRows.of(call) is not None and _is_plain(member):
                    shares.setdefault(name, []).append((member, group, merged))
        for name, found in shares.items():
            _merge(work, name, found)
        return RecoveryRow(self.name, tuple(shares), {})


def nearest_kept(filters: Tensor, mask: Mask, least_similarity: float = 0.0) -> Tensor:
    """The shares of removed channels added to kept ones: float64 ``(channels, channels)``, rows removed, columns kept.

    Args:
        filters: one row for each channel, ``(channels, features)``.
        mask: which channels stay, ``(channels,)``.
        least_similarity: channels whose nearest kept one has a smaller cosine are not merged.
    """
    norms = filters.norm(dim=1).clamp_min(1e-30)
    cosines = (filters @ filters.T) / norms / norms.unsqueeze(1)
    stays = torch.from_numpy(mask)
    cosines[:, ~stays] = -torch.inf
    best, partner = cosines.max(dim=1)
    gone = torch.nonzero(~stays & (best > 0) & (best >= least_similarity)).reshape(-1)
    shares = torch.zeros_like(cosines)
    shares[gone, partner[gone]] = best[gone] * norms[gone] / norms[partner[gone]]
    return shares


def _filters(group: Group, work: Work) -> Tensor:
    """One row per channel: the filters that produce it, scaled by the following batch norm, with its shift as bias."""
    paths = ModelPaths(work.model, work.graph.constants)
    tensors = {name: paths.attribute(name) for name in work.graph.shapes}
    found = []
    for member in producers(group, tensors, work.graph):
        rows = channel_rows(tensors[member.tensor], member, group.variable).cpu()
        scale, shift = _affine(group, member, tensors, rows, work.model)
        found.append(torch.cat([rows * scale.unsqueeze(1), shift.unsqueeze(1)], dim=1))
    return torch.cat(found, dim=1)


def _affine(
    group: Group, producer: Member, tensors: Mapping[str, Tensor], rows: Tensor, model: nn.Module
) -> tuple[Tensor, Tensor]:
    """Scale and shift of each channel after its filter: those of one following batch norm, else one and the bias."""
    names = {m.tensor for m in group.members if m.role == "scale" and _is_plain(m) and m.axis.size == group.size}
    bias = producer.tensor.rpartition(".")[0] + ".bias"
    shift = tensors[bias].detach().double().cpu() if bias in names else rows.new_zeros(len(rows))
    scale = rows.new_ones(len(rows))
    variances = [n for n in names if n.endswith("running_var")]
    if len(variances) != 1 or len(shift) != len(rows):
        return scale, shift if len(shift) == len(rows) else rows.new_zeros(len(rows))
    path = variances[0].removesuffix("running_var")
    eps = float(getattr(model.get_submodule(path.removesuffix(".")), "eps", 1e-5))

    def held(name: str, otherwise: Tensor) -> Tensor:
        return tensors[path + name].detach().double().cpu() if path + name in names else otherwise

    scale = held("weight", scale) * (tensors[variances[0]].detach().double().cpu() + eps).rsqrt()
    return scale, held("bias", torch.zeros_like(shift)) + (
        shift - held("running_mean", torch.zeros_like(shift))
    ) * scale


def _is_plain(member: Member) -> bool:
    return is_elementwise(member.axis) and len(set(variables(member.axis))) == 1


def _merge(work: Work, name: str, found: list[tuple[Member, Group, Tensor]]) -> None:
    new = attribute(work.pruned, name)
    old = attribute(work.model, name).detach().to(torch.float64)
    for dim, index in enumerate(work.plan.keep[name]):
        if index is not None and dim != 1:
            old = old.index_select(dim, index.to(old.device))
    kept = work.plan.keep[name][1]
    assert kept is not None
    added = torch.zeros_like(old.index_select(1, kept.to(old.device)))
    for member, group, shares in found:
        mixing = _column_shares(channels_of(member.axis, group.variable), shares.numpy())
        added += torch.einsum("oc...,ck->ok...", old, torch.from_numpy(mixing[:, kept.numpy()]).to(old))
    new.add_(added.to(new.dtype))


def _column_shares(channels: IndexArray, shares: FloatArray) -> FloatArray:
    """The shares ``(columns, columns)``: the n-th column of a channel is added to the n-th of its partner."""
    counts: Counter[int] = Counter()
    places = []
    for channel in channels.tolist():
        places.append(counts[channel])
        counts[channel] += 1
    at = {
        (channel, place): column for column, (channel, place) in enumerate(zip(channels.tolist(), places, strict=True))
    }
    mixing = np.zeros((len(channels), len(channels)))
    for channel, partner in np.argwhere(shares).tolist():
        for place in range(min(counts[channel], counts[partner])):
            mixing[at[channel, place], at[partner, place]] = shares[channel, partner]
    return mixing
