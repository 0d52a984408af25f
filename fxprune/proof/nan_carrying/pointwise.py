"""Pointwise operators: an output entry is removed if any of its inputs is.

Most arithmetic does so by itself, because NaN propagates. Where it does not (a comparison, ``where``, ``sign``, a power
of 0), the marks are written again. Booleans and integers cannot hold NaN, so their marks are kept in separate masks.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from fxprune.proof.nan_carrying.calls import gone, tensors_among, unexpanded, with_nan, words

# Operators that propagate NaN from every tensor argument to the output.
_KEEP_NAN = words(
    """abs acos acosh add addcdiv addcmul asin asinh atan atan2 atanh ceil celu clamp clamp_max clamp_min clip clone
    conj_physical _conj_physical cos cosh deg2rad digamma div elu erf erfc erfinv exp exp2 expm1 floor fmod frac gelu
    glu hardshrink hardsigmoid hardswish hardtanh leaky_relu lerp lgamma log log10 log1p log2 log_sigmoid_forward
    logaddexp logaddexp2 logit maximum minimum mish mul neg polar positive rad2deg reciprocal relu relu6 remainder
    round rsqrt rsub selu sigmoid silu sin sinc sinh softplus softshrink sqrt square sub tan tanh threshold
    true_divide trunc"""
)

# Pointwise operators that are not tagged so. One that uses only its input's shape still takes the input's marks:
# ``ones_like(x)`` has the axes of ``x``.
_UNTAGGED = words(
    """_prelu_kernel _to_copy masked_fill floor_divide full_like ones_like rand_like randint_like randn_like zeros_like
    bernoulli complex"""
)


@functools.cache
def keeps_nan(func: torch._ops.OpOverload) -> bool:
    """Whether the operator is pointwise and propagates NaN by itself."""
    return _plain_name(func) in _KEEP_NAN and not _has_out(func)


@functools.cache
def is_pointwise(func: torch._ops.OpOverload) -> bool:
    """Whether the operator is pointwise."""
    return (torch.Tag.pointwise in func.tags or _plain_name(func) in _UNTAGGED) and not _has_out(func)


class Shadows:
    """Masks of removed entries for tensors that cannot hold NaN; a mask is freed with its tensor."""

    def __init__(self) -> None:
        self._masks = WeakTensorKeyDictionary()

    def of(self, tensor: Tensor) -> Tensor | None:
        """A mask of the removed entries of ``tensor``; None if there are none."""
        if tensor.is_floating_point() or tensor.is_complex():
            mask = gone(unexpanded(tensor))
            return mask if bool(mask.any()) else None
        return self.get(tensor)

    def get(self, tensor: Tensor) -> Tensor | None:
        """The mask stored for ``tensor``, if any."""
        if not self._masks or tensor.is_floating_point():
            return None
        mask: Tensor | None = self._masks.get(tensor)  # type: ignore[no-untyped-call]
        return mask

    def put(self, tensor: Tensor, mask: Tensor) -> None:
        """Store ``mask`` for ``tensor``."""
        self._masks[tensor] = mask


def marked_again(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], shadows: Shadows) -> Any:
    """Run a pointwise operator and mark its output entries for which an input entry is removed."""
    masks = [mask for mask in map(shadows.of, tensors_among(args, kwargs)) if mask is not None]
    result = func(*args, **kwargs)
    if not masks:
        return result
    removed = functools.reduce(torch.logical_or, masks)
    in_place = func._schema.is_mutable
    return pytree.tree_map_only(Tensor, lambda out: _mark(out, removed, in_place, shadows), result)


def _mark(out: Tensor, removed: Tensor, in_place: bool, shadows: Shadows) -> Tensor:
    removed = removed.expand(out.shape)
    if not (out.is_floating_point() or out.is_complex()):
        shadows.put(out, removed)
        return out
    return out.masked_fill_(removed, float("nan")) if in_place else with_nan(out, removed)


def _plain_name(func: torch._ops.OpOverload) -> str:
    name = func._schema.name.removeprefix("aten::")
    return name.removesuffix("_") if func._schema.is_mutable else name


def _has_out(func: torch._ops.OpOverload) -> bool:
    return any(argument.is_out for argument in func._schema.arguments)
