"""Tensors that lost whole slices and nothing else, as nearly all do: one line of marks for each dim says it all."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from .calls import gone

__all__ = ["Lines", "bury_slices", "lost_slices"]

Lines = tuple[Tensor | None, ...]


def lost_slices(tensor: Tensor) -> Lines | None:
    """For each dim which slices are removed, None for none, where no other entry is; None where others are, too.

    One entry that is left names the slices of each dim that may be removed; they must account for every mark.
    """
    removed = gone(tensor)
    if not bool(removed.any()):
        return (None,) * tensor.ndim
    cell = _live_entry(removed)
    if cell is None:
        return None
    lines: list[Tensor | None] = []
    for dim in range(tensor.ndim):
        line = _line(removed, cell, dim)
        lines.append(line if bool(line.any()) else None)
    marks = [_along(line, dim, tensor.ndim) for dim, line in enumerate(lines) if line is not None]
    found = functools.reduce(torch.logical_or, marks, removed.new_zeros((1,) * tensor.ndim))
    return tuple(lines) if torch.equal(removed, found.expand(removed.shape)) else None


def _live_entry(removed: Tensor) -> tuple[int, ...] | None:
    """The indices of an entry that is left."""
    number = int(removed.flatten().to(torch.uint8).argmin())
    cell = tuple(int(i) for i in torch.unravel_index(torch.tensor(number), removed.shape))
    return None if bool(removed[cell]) else cell


def _line(removed: Tensor, cell: tuple[int, ...], dim: int) -> Tensor:
    """The marks along ``dim`` through ``cell``."""
    for other in reversed(range(removed.ndim)):
        if other != dim:
            removed = removed.select(other, cell[other])
    return removed


def _along(line: Tensor, dim: int, rank: int) -> Tensor:
    return line.reshape([-1 if d == dim else 1 for d in range(rank)])


def bury_slices(tensor: Tensor, lines: Lines) -> Tensor:
    """Write NaN over the removed slices of ``tensor``, in place."""
    for dim, line in enumerate(lines):
        if line is not None:
            tensor.index_fill_(dim, line.nonzero().flatten(), math.nan)
    return tensor
