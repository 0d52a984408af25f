"""Operators that only move, copy or create entries: NaN travels through them untouched."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .calls import tensors_among, words
from .pointwise import Shadows

__all__ = ["is_structural", "is_unwritten", "moved"]

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

# Sums of what lands on one entry: a removed summand removes the sum, which no narrower network could avoid.
_ADDED = "index_add index_add_ scatter_add scatter_add_ _embedding_bag _embedding_bag_forward_only"

_CREATED = """arange bernoulli_ exponential_ eye full linspace logspace new_full new_ones new_zeros normal_ normal ones
    rand randint randn random_ randperm scalar_tensor tril_indices triu_indices uniform_ zeros resize_"""

# Memory that was never written to may hold NaN, which is no mark.
_UNWRITTEN = words("empty empty_permuted empty_strided new_empty new_empty_strided")

# Answers about a tensor that are no values of it.
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
    """Whether the operator hands out memory without writing to it."""
    return _name(func) in _UNWRITTEN


def _name(func: torch._ops.OpOverload) -> str:
    return func._schema.name.removeprefix("aten::")


def moved(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], shadows: Shadows) -> Any:
    """Run a structural operator; where a mask is kept beside an input, move it in the same way."""
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
