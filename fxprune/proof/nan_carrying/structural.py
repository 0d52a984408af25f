"""Tensors that lost only whole slices, as nearly all do: one line of marks per dim describes them."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.proof.nan_carrying.calls import Handler, OperatorCall, gone, tensors_among, with_nan, words
from fxprune.proof.nan_carrying.pointwise import Shadows

Lines = tuple[Tensor | None, ...]


def lost_slices(tensor: Tensor) -> Lines | None:
    """For each dim a mask of its removed slices, or None; None as a whole if other entries are removed too.

    The lines of marks through one kept entry show which slices may be removed; these must account for every mark.
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
    """The indices of a kept entry; None if there is none."""
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


def fill_slices_with_nan(tensor: Tensor, lines: Lines) -> Tensor:
    """Write NaN over the removed slices of ``tensor``, in place."""
    for dim, line in enumerate(lines):
        if line is not None:
            tensor.index_fill_(dim, line.nonzero().flatten(), math.nan)
    return tensor


_VIEWS = """_reshape_alias _unsafe_view adjoint alias as_strided as_strided_ chunk conj contiguous detach detach_
    diagonal expand expand_as flatten imag lift_fresh movedim narrow permute pin_memory ravel real reshape
    resolve_conj resolve_neg select slice split split_with_sizes squeeze squeeze_ swapaxes t t_ transpose transpose_
    unbind unflatten unfold unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze unsqueeze_ view view_as
    view_as_complex view_as_real"""

_COPIES = """alias_copy as_strided_copy block_diag channel_shuffle detach_copy diag_embed diagonal_copy
    embedding expand_copy flip gather index index_select lift lift_fresh_copy masked_select narrow_copy
    native_channel_shuffle permute_copy pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad2d
    reflection_pad3d repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d roll rot90
    select_copy set_ slice_copy split_copy split_with_sizes_copy squeeze_copy t_copy take transpose_copy
    unbind_copy unfold_copy _pack_padded_sequence _unsafe_index unsqueeze_copy view_copy"""

# Sums over all that is written to one entry: one removed summand removes the sum, as NaN propagates.
_ADDED = "index_add index_add_ scatter_add scatter_add_ _embedding_bag _embedding_bag_forward_only"

_CREATED = """arange bernoulli_ exponential_ eye full linspace logspace new_full new_ones new_zeros normal_ normal ones
    rand randint randn random_ randperm scalar_tensor tril_indices triu_indices uniform_ zeros resize_"""

# Uninitialised memory may hold NaN, which is not a mark.
_UNWRITTEN = words("empty empty_permuted empty_strided new_empty new_empty_strided")

# Operators whose results are not values of their input.
_ASKED = """_assert_async _assert_scalar _assert_tensor_metadata _functional_assert_async _has_same_storage_numel
    is_same_size isnan isinf isfinite"""

_MOVED = words(f"{_VIEWS} {_COPIES}")
_STRUCTURAL = _MOVED | words(f"{_ADDED} {_CREATED} {_ASKED}")


@functools.cache
def is_structural(func: torch._ops.OpOverload) -> bool:
    """Whether the operator only moves, copies or creates entries."""
    return _name(func) in _STRUCTURAL or func.is_view


@functools.cache
def is_unwritten(func: torch._ops.OpOverload) -> bool:
    """Whether the operator returns uninitialised memory."""
    return _name(func) in _UNWRITTEN


def _name(func: torch._ops.OpOverload) -> str:
    return func._schema.name.removeprefix("aten::")


def moved(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], shadows: Shadows) -> Any:
    """Run a structural operator; if an input has a mask in ``shadows``, move the mask in the same way."""
    result = func(*args, **kwargs)
    if _name(func) not in _MOVED or func._schema.is_mutable:
        return result
    if all(shadows.get(tensor) is None for tensor in tensors_among(args, kwargs)):
        return result
    flat, spec = pytree.tree_flatten((args, kwargs))
    masks = [shadows.get(leaf) if isinstance(leaf, Tensor) else None for leaf in flat]
    shadowed = [leaf if mask is None else mask for leaf, mask in zip(flat, masks, strict=True)]
    _keep_masks(func, result, pytree.tree_unflatten(shadowed, spec), shadows)
    return result


def _keep_masks(func: torch._ops.OpOverload, result: Any, call: tuple[Any, ...], shadows: Shadows) -> None:
    args, kwargs = call
    outputs = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor) and not leaf.is_floating_point()]
    moved_masks = [leaf for leaf in pytree.tree_leaves(func(*args, **kwargs)) if isinstance(leaf, Tensor)]
    for output, mask in zip(outputs, moved_masks, strict=False):
        shadows.put(output, mask.bool())


def _shared(masks: list[Tensor], dim: int) -> Tensor | None:
    """Positions of the other dims that some mask removes along all of ``dim``, which is kept with size 1.

    A piece that is removed as a whole is just not joined, and says nothing about the others.
    """
    found = [mask.all(dim, keepdim=True) for mask in masks if mask.numel() and not bool(mask.all())]
    return functools.reduce(torch.logical_or, found) if found else None


def _cat(call: OperatorCall) -> Any:
    pieces = [piece for piece in call["tensors"] if piece.shape != (0,)]
    shared = _shared([gone(piece) for piece in pieces], call.get("dim", 0))
    result = call.run()
    return result if shared is None else with_nan(result, shared)


def _stack(call: OperatorCall) -> Any:
    dim, result = call.get("dim", 0), call.run()
    shared = _shared([gone(piece).unsqueeze(dim) for piece in call["tensors"]], dim)
    return result if shared is None else with_nan(result, shared)


def _pad(call: OperatorCall) -> Any:
    x, amounts = call["self"], list(call["pad"])
    removed = gone(x)
    for dim, (before, after) in enumerate(zip(amounts[::2], amounts[1::2], strict=True), start=1):
        removed = _pad_mask(removed, x.ndim - dim, before, after)
    return with_nan(call.run(), removed)


def _pad_mask(removed: Tensor, dim: int, before: int, after: int) -> Tensor:
    border = removed.all(dim, keepdim=True)
    removed = removed.narrow(dim, max(-before, 0), removed.shape[dim] + min(before, 0) + min(after, 0))
    sizes = [list(removed.shape), list(removed.shape)]
    sizes[0][dim], sizes[1][dim] = max(before, 0), max(after, 0)
    return torch.cat([border.expand(sizes[0]), removed, border.expand(sizes[1])], dim)


def _written(call: OperatorCall) -> Any:
    """Values written into ``self``: a removed entry of ``self`` stays removed."""
    removed = gone(call["self"])
    return with_nan(call.run(), removed)


def _im2col(call: OperatorCall) -> Any:
    """Windows of a plane; padding of a removed channel is removed with it."""
    x, result = call["self"], call.run()
    channels = gone(x).flatten(-2).all(-1)
    return with_nan(result, channels.repeat_interleave(result.shape[-2] // channels.shape[-1], -1)[..., None])


_WRITES = """copy fill zero diagonal_scatter index_copy index_fill index_put _index_put_impl masked_scatter put scatter
    select_scatter slice_scatter as_strided_scatter tril triu _unsafe_index_put"""

JOINING: dict[str, Handler] = {
    "cat": _cat,
    "stack": _stack,
    "constant_pad_nd": _pad,
    "im2col": _im2col,
    **dict.fromkeys(_WRITES.split(), _written),
}
