"""Weights as one row per channel, and distances between rows."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from fxprune.analysis.groups import Group, Member
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import FloatArray, owned_by
from fxprune.axes.expressions import Axis, Channels, Concat, Fixed, Gather, Product, variables


def parameter_members(group: Group, graph: ChannelGraph) -> list[Member]:
    """The group's members that are parameters."""
    return [m for m in group.members if m.tensor in graph.parameter_names]


def producers(group: Group, tensors: Mapping[str, Tensor], graph: ChannelGraph) -> list[Member]:
    """The members whose rows make the group's channels: kernels, or biases if there are no kernels."""
    members = parameter_members(group, graph)
    made = [m for m in members if m.role == "out"]
    kernels = [m for m in made if tensors[m.tensor].ndim > 1]
    return kernels or made or members


def scoped_members(scope: str, group: Group, tensors: Mapping[str, Tensor], graph: ChannelGraph) -> list[Member]:
    """All parameters of a group for the scope "group", those that make its channels for "producer"."""
    return parameter_members(group, graph) if scope == "group" else producers(group, tensors, graph)


def channel_rows(tensor: Tensor, member: Member, variable: Channels) -> Tensor:
    """The entries of a tensor that each channel owns, padded with zeros: float64, shape ``(channels, features)``."""
    rows = tensor.detach().movedim(member.dim, 0)
    rows = rows.reshape(rows.shape[0], -1).to(torch.float64)
    channels, elements = owned_by(member.axis, variable)
    counts = np.bincount(channels, minlength=variable.size)
    place = np.arange(len(channels)) - np.repeat(np.cumsum(counts) - counts, counts)
    held = rows.new_zeros((variable.size, int(counts.max()), rows.shape[1]))
    at = (torch.from_numpy(channels).to(rows.device), torch.from_numpy(place).to(rows.device))
    held[at] = rows[torch.from_numpy(elements).to(rows.device)]
    return held.reshape(variable.size, -1)


def producer_rows(group: Group, tensors: Mapping[str, Tensor], graph: ChannelGraph) -> Tensor:
    """The filters of a group, those of coupled producers concatenated: float64, shape ``(channels, features)``."""
    members = producers(group, tensors, graph)
    return torch.cat([channel_rows(tensors[m.tensor], m, group.variable).cpu() for m in members], dim=1)


def channel_totals(tensor: Tensor, member: Member, variable: Channels) -> FloatArray:
    """The sum of all entries of a tensor that each channel owns. Shape ``(channels,)``."""
    others = [d for d in range(tensor.ndim) if d != member.dim]
    sums = tensor.detach().to(torch.float64)
    sums = sums.sum(others) if others else sums
    return fold(member.axis, sums.cpu().numpy())[variable]


def distances(rows: Tensor) -> Tensor:
    """Euclidean distances between the rows of ``(..., channels, features)``, from Gram matrices in float64.

    Rows that differ by less than a millionth of their norms count as equal, because Gram matrices are not more precise.
    """
    rows = rows.to(torch.float64)
    rows = rows - rows.mean(dim=-2, keepdim=True)
    gram = rows @ rows.mT
    energy = gram.diagonal(dim1=-2, dim2=-1)
    pair = energy.unsqueeze(-1) + energy.unsqueeze(-2)
    squared = pair - 2 * gram
    return torch.where(squared > 1e-12 * pair, squared, 0.0).sqrt()


def settled(values: FloatArray) -> FloatArray:
    """The values rounded by a few digits, so that equal channels have equal scores at any index."""
    scale = float(np.abs(values).max()) if len(values) else 0.0
    if not 1e-250 < scale < 1e250:
        return values
    return np.round(values, 11 - math.floor(math.log10(scale)))


_CHUNK = 1 << 17  # elements reduced at a time: measured fastest, a temporary of half a megabyte


class TensorSums(Mapping[str, Tensor]):
    """The tensors of a network, with slice sums that are remembered.

    A criterion is asked group by group, but one tensor dim may hold many groups (a concatenation); each dim is reduced
    once for all of them.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._sums: dict[tuple[str, int, int], dict[Channels, FloatArray]] = {}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> TensorSums:
        """The mapping with remembered sums; itself if it is one already."""
        return tensors if isinstance(tensors, cls) else cls(tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def channel_sums(self, member: Member, variable: Channels, power: int) -> FloatArray:
        """``sum(abs(w) ** power)`` over everything that each channel of ``variable`` owns of the member's dim."""
        key = (member.tensor, member.dim, power)
        if key not in self._sums:
            self._sums[key] = fold(member.axis, slice_sums(self._tensors[member.tensor], member.dim, power))
        return self._sums[key][variable]


def slice_sums(tensor: Tensor, dim: int, power: int) -> FloatArray:
    """``sum(abs(w) ** power)`` of every slice along ``dim``; ``power`` is 1 or 2. Shape ``(size of dim,)``.

    Sums are in the tensor's own precision within a chunk (half precisions in float32), and in float64 across chunks.
    The chunks run along the first dim: temporaries fit the cache and add nothing to the peak memory.
    """
    values = tensor.detach()
    if values.ndim == 1:
        plain = values.abs() if values.is_complex() else values
        magnitudes = plain.to(torch.float64).abs().cpu().numpy()
        return magnitudes if power == 1 else np.square(magnitudes)
    count = values.shape[0]
    rows = max(1, _CHUNK * count // max(1, values.numel()))
    chunks = map(_matrix, (values,) if rows >= count else torch.split(values, rows))
    if dim == 0:
        sums_of_rows = [_row_sums(chunk, power) for chunk in chunks]
        total = torch.cat(sums_of_rows) if len(sums_of_rows) > 1 else sums_of_rows[0]
    else:
        columns = functools.reduce(torch.add, (_column_sums(chunk, power) for chunk in chunks))
        grid = columns.reshape(values.shape[1:])
        others = [d for d in range(grid.ndim) if d != dim - 1 and grid.shape[d] != 1]
        total = (grid.sum(others) if others else grid).reshape(values.shape[dim])
    sums: FloatArray = total.cpu().numpy()
    return sums


def _matrix(chunk: Tensor) -> Tensor:
    flat = chunk.reshape(chunk.shape[0], math.prod(chunk.shape[1:]))
    flat = flat.abs() if flat.is_complex() else flat
    return flat if flat.dtype in (torch.float32, torch.float64) else flat.to(torch.float32)


def _row_sums(chunk: Tensor, power: int) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(chunk, power, dim=1).to(torch.float64)
    return norms if power == 1 else norms.square()


def _column_sums(chunk: Tensor, power: int) -> Tensor:
    powered = chunk.abs() if power == 1 else chunk.square()
    return powered.sum(0).to(torch.float64)


def fold(axis: Axis, values: FloatArray) -> dict[Channels, FloatArray]:
    """Sum ``values`` (one per element of a resolved axis) by the channel that each element needs.

    An element of a product needs a channel of every factor and counts for each of them, once. Shape of each result:
    ``(variable.size,)``.
    """
    found: dict[Channels, FloatArray] = {}
    _fold(axis, values, found)
    return found


def _fold(axis: Axis, values: FloatArray, found: dict[Channels, FloatArray]) -> None:
    if isinstance(axis, Channels):
        found[axis] = found[axis] + values if axis in found else values
    elif isinstance(axis, Concat):
        bounds = np.cumsum([p.size for p in axis.parts[:-1]])
        for part, piece in zip(axis.parts, np.split(values, bounds), strict=True):
            _fold(part, piece, found)
    elif isinstance(axis, Gather):
        summed: FloatArray = np.bincount(axis.index, weights=values, minlength=axis.base.size).astype(np.float64)
        _fold(axis.base, summed, found)
    elif not isinstance(axis, Fixed) and _repeats_a_variable(axis):
        for variable in set(variables(axis)):
            channels, elements = owned_by(axis, variable)
            owned = np.bincount(channels, weights=values[elements], minlength=variable.size).astype(np.float64)
            found[variable] = found[variable] + owned if variable in found else owned
    elif not isinstance(axis, Fixed):
        grid = values.reshape([factor.size for factor in axis.factors])
        for place, factor in enumerate(axis.factors):
            others = tuple(p for p in range(grid.ndim) if p != place)
            _fold(factor, grid.sum(axis=others), found)


def _repeats_a_variable(axis: Product) -> bool:
    """Whether two factors hold the same variable."""
    held = [{v.serial for v in variables(factor)} for factor in axis.factors]
    return len(set().union(*held)) < sum(map(len, held))
