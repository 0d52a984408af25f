"""Tensors put side by side, padded or written into.

What is removed from one of them is removed from the whole, because a narrower network can only join equal shapes. So a
constant border, a piece of zeros or a value written into a removed channel is marked as well.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .calls import Call, Handler, bury, gone

__all__ = ["JOINING"]


def _shared(masks: list[Tensor], dim: int) -> Tensor | None:
    """Positions beside ``dim`` that some mask removes throughout ``dim``, kept as size 1.

    A piece that is removed as a whole is only a piece less to join, and says nothing about the others.
    """
    found = [mask.all(dim, keepdim=True) for mask in masks if mask.numel() and not bool(mask.all())]
    return functools.reduce(torch.logical_or, found) if found else None


def _cat(call: Call) -> Any:
    pieces = [piece for piece in call["tensors"] if piece.shape != (0,)]
    shared = _shared([gone(piece) for piece in pieces], call.get("dim", 0))
    result = call.run()
    return result if shared is None else bury(result, shared)


def _stack(call: Call) -> Any:
    dim, result = call.get("dim", 0), call.run()
    shared = _shared([gone(piece).unsqueeze(dim) for piece in call["tensors"]], dim)
    return result if shared is None else bury(result, shared)


def _pad(call: Call) -> Any:
    x, amounts = call["self"], list(call["pad"])
    removed = gone(x)
    for dim, (before, after) in enumerate(zip(amounts[::2], amounts[1::2], strict=True), start=1):
        removed = _pad_mask(removed, x.ndim - dim, before, after)
    return bury(call.run(), removed)


def _pad_mask(removed: Tensor, dim: int, before: int, after: int) -> Tensor:
    border = removed.all(dim, keepdim=True)
    removed = removed.narrow(dim, max(-before, 0), removed.shape[dim] + min(before, 0) + min(after, 0))
    sizes = [list(removed.shape), list(removed.shape)]
    sizes[0][dim], sizes[1][dim] = max(before, 0), max(after, 0)
    return torch.cat([border.expand(sizes[0]), removed, border.expand(sizes[1])], dim)


def _written(call: Call) -> Any:
    """A value written into ``self``: an entry of ``self`` that was removed stays removed."""
    removed = gone(call["self"])
    return bury(call.run(), removed)


def _im2col(call: Call) -> Any:
    """Windows of a plane; the zeros that pad a removed channel are removed with it."""
    x, result = call["self"], call.run()
    channels = gone(x).flatten(-2).all(-1)
    return bury(result, channels.repeat_interleave(result.shape[-2] // channels.shape[-1], -1)[..., None])


_WRITES = """copy fill zero diagonal_scatter index_copy index_fill index_put _index_put_impl masked_scatter put scatter
    select_scatter slice_scatter as_strided_scatter tril triu _unsafe_index_put"""

JOINING: dict[str, Handler] = {
    "cat": _cat,
    "stack": _stack,
    "constant_pad_nd": _pad,
    "im2col": _im2col,
    **dict.fromkeys(_WRITES.split(), _written),
}
