"""Reductions and scans over the kept entries.

A removed entry is replaced by the neutral value (0 for a sum, minus infinity for a maximum); a result over removed
entries only is removed.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.proof.nan_carrying.calls import (
    Handler,
    OperatorCall,
    constant_along,
    filled,
    gone,
    trailing,
    with_nan,
    words,
)
from fxprune.proof.nan_carrying.pointwise import Shadows


def _dims(call: OperatorCall) -> tuple[int, ...]:
    """The reduced dims, counted from the front; all dims if none is named."""
    x = call["self"]
    dim = call.get("dim")
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return tuple(range(x.ndim))
    listed = dim if isinstance(dim, (list, tuple)) else [dim]
    return tuple(d % max(x.ndim, 1) for d in listed)


def all_removed(call: OperatorCall, removed: Tensor) -> Tensor:
    """A mask of the results over removed entries only."""
    dims = _dims(call)
    return removed.all(dim=dims, keepdim=bool(call.get("keepdim", False))) if dims else removed


def _with_fill(fill: float, *, by_entry: bool = False) -> Handler:
    """The operator on ``fill`` in place of removed entries; ``by_entry``: it has a result for each, as softmax has."""

    def handler(call: OperatorCall) -> Any:
        removed = gone(call["self"])
        result = call.run(self=call["self"].masked_fill(removed, fill))
        dead = removed if by_entry else all_removed(call, removed)
        return pytree.tree_map_only(Tensor, lambda out: with_nan(out, dead), result)

    return handler


def _count(call: OperatorCall, removed: Tensor) -> Tensor:
    kept = (~removed).sum(dim=_dims(call), keepdim=bool(call.get("keepdim", False)))
    return kept.to(call["self"].dtype)


def _mean(call: OperatorCall) -> Any:
    x = call["self"] if call.get("dtype") is None else call["self"].to(call["dtype"])
    removed = gone(x)
    total = filled(x).sum(dim=_dims(call), keepdim=bool(call.get("keepdim", False)))
    return with_nan(total / _count(call, removed), all_removed(call, removed))


def _moments(call: OperatorCall) -> tuple[Tensor, Tensor]:
    """Variance and mean over the kept entries."""
    x, dims, keep = call["self"], _dims(call), bool(call.get("keepdim", False))
    removed = gone(x)
    mean, squares, kept = _sums(x, dims)
    correction = call.get("correction", 1 if call.get("unbiased", True) else 0)
    dead = all_removed(call, removed)
    variance, mean = (t if keep else t.reshape(dead.shape) for t in (squares / (kept - correction).clamp_min(0), mean))
    return with_nan(variance, dead), with_nan(mean, dead)


def _sums(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of the kept entries, the sum of their squared deviations, and their number; ``dims`` become 1."""
    removed, values = gone(x), filled(x)
    kept = (~removed).sum(dim=dims, keepdim=True).to(x.dtype)
    mean = values.sum(dim=dims, keepdim=True) / kept
    return mean, (values - mean).masked_fill(removed, 0).abs().square().sum(dim=dims, keepdim=True), kept


def _norm(call: OperatorCall) -> Any:
    order = call.get("ord", call.get("p", 2))
    return _with_fill(math.inf if order < 0 else 0.0)(call)


def _aminmax(call: OperatorCall) -> Any:
    x = call["self"]
    removed, keep = gone(x), bool(call.get("keepdim", False))
    dims = _dims(call)
    low = x.masked_fill(removed, math.inf).amin(dim=dims, keepdim=keep)
    high = x.masked_fill(removed, -math.inf).amax(dim=dims, keepdim=keep)
    dead = all_removed(call, removed)
    return with_nan(low, dead), with_nan(high, dead)


def _found(call: OperatorCall) -> Any:
    """A value chosen among the kept entries, which must be the same ones at every other position."""
    x, dims = call["self"], _dims(call)
    removed = gone(x)
    if constant_along(removed, dims):
        return call.run()
    if len(dims) != 1:
        return call.run(self=x[~removed])
    others = tuple(d for d in range(x.ndim) if d != dims[0])
    left = ~(removed.all(dim=others) if others else removed)
    narrow = x.index_select(dims[0], left.nonzero().flatten())
    if not constant_along(gone(narrow), dims):
        raise call.fault("searches along a dim that has lost different positions at different places")
    return call.run(self=narrow)


def _ranked(call: OperatorCall) -> Any:
    """The largest or smallest kept entries; their indices count all entries of the full tensor."""
    x, dim = call["self"], _dims(call)[-1]
    removed = gone(x)
    others = tuple(d for d in range(x.ndim) if d != dim)
    if not constant_along(removed, others):
        return _whole(call)
    left = (~removed.any(others) if others else ~removed).nonzero().flatten()
    if len(left) < call.get("k", 1):
        raise call.fault(f"looks for {call.get('k', 1)} elements, of which {len(left)} are left")
    found = call.run(self=x.index_select(dim, left))
    return left[found] if isinstance(found, Tensor) else (found[0], left[found[1]])


def _whole(call: OperatorCall) -> Any:
    """Sorting and searching along dims; along them all entries must be removed, or none."""
    if not constant_along(gone(call["self"]), _dims(call)):
        raise call.fault("orders or searches along a dim that has removed positions")
    return call.run()


def _cdist(call: OperatorCall) -> Any:
    left, right = call["x1"], call["x2"]
    difference = left.unsqueeze(-2) - right.unsqueeze(-3)
    removed = gone(difference)
    distance = torch.linalg.vector_norm(filled(difference), call.get("p", 2), dim=-1)
    return with_nan(distance, removed.all(-1))


def _dist(call: OperatorCall) -> Any:
    difference = call["self"] - call["other"]
    order = call.get("p", 2)
    distance = torch.linalg.vector_norm(filled(difference), order)
    return with_nan(distance, gone(difference).all())


REDUCTIONS: dict[str, Handler] = {
    **dict.fromkeys(("sum", "nansum"), _with_fill(0.0)),
    "prod": _with_fill(1.0),
    **dict.fromkeys(("amax", "max", "logsumexp"), _with_fill(-math.inf)),
    **dict.fromkeys(("amin", "min"), _with_fill(math.inf)),
    **dict.fromkeys(("norm", "linalg_vector_norm"), _norm),
    **dict.fromkeys(("aminmax", "_aminmax"), _aminmax),
    **dict.fromkeys(
        words("_softmax _log_softmax _safe_softmax logcumsumexp cummax"), _with_fill(-math.inf, by_entry=True)
    ),
    **dict.fromkeys(("median", "mode", "nanmedian"), _found),
    **dict.fromkeys(("argmax", "argmin", "topk"), _ranked),
    "cummin": _with_fill(math.inf, by_entry=True),
    "cumsum": _with_fill(0.0, by_entry=True),
    "cumprod": _with_fill(1.0, by_entry=True),
    **dict.fromkeys(words("argsort kthvalue sort linalg_cross _fft_c2c _fft_c2r _fft_r2c"), _whole),
    "renorm": lambda call: with_nan(call.run(self=filled(call["self"])), gone(call["self"])),
    "mean": _mean,
    "var": lambda call: _moments(call)[0],
    "std": lambda call: _moments(call)[0].sqrt(),
    "var_mean": _moments,
    "std_mean": lambda call: (_moments(call)[0].sqrt(), _moments(call)[1]),
    "dist": _dist,
    "_cdist_forward": _cdist,
    "_euclidean_dist": _cdist,
}


def _moments_of_groups(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the kept entries over ``dims``, which are kept with size 1."""
    mean, squares, kept = _sums(x, dims)
    return mean, squares / kept


def _layer_norm(call: OperatorCall) -> Any:
    x = call["input"]
    mean, variance = _moments_of_groups(x, trailing(x, len(call["normalized_shape"])))
    scale = torch.rsqrt(variance + call["eps"])
    return _affine((x - mean) * scale, call.get("weight"), call.get("bias")), mean, scale


def _rms_norm(call: OperatorCall) -> Any:
    x = call["input"]
    removed = gone(x)
    dims = trailing(x, len(call["normalized_shape"]))
    kept = (~removed).sum(dim=dims, keepdim=True).to(x.dtype)
    square = filled(x).square().sum(dim=dims, keepdim=True) / kept
    scale = torch.rsqrt(square + call.get("eps", torch.finfo(x.dtype).eps))
    return _affine(x * scale, call.get("weight"), None), scale


def _group_norm(call: OperatorCall) -> Any:
    x = call["input"]
    grouped = x.reshape(x.shape[0], call["group"], -1)
    mean, variance = _moments_of_groups(grouped, (2,))
    scale = torch.rsqrt(variance + call["eps"])
    shape = [1, x.shape[1], *[1] * (x.ndim - 2)]
    weight, bias = (None if v is None else v.reshape(shape) for v in (call.get("weight"), call.get("bias")))
    return _affine(((grouped - mean) * scale).reshape(x.shape), weight, bias), mean[..., 0], scale[..., 0]


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _batch_norm(call: OperatorCall) -> Any:
    """Per channel, hence correct by itself, except if batch statistics are taken over removed entries.

    Weight standardisation does that: each row of a weight is a channel, with its inputs as positions.
    """
    x = call["input"]
    by_batch = bool(call.get("training", False)) or call.get("running_mean") is None
    dims = (0, *range(2, x.ndim))
    if not by_batch or constant_along(gone(x), dims):
        return call.run()
    if call.get("running_mean") is not None:
        raise call.fault("would put statistics over removed positions into the running ones")
    mean, variance = _moments_of_groups(x, dims)
    scale = torch.rsqrt(variance + call.get("eps", call.get("epsilon")))
    weight, bias = (None if v is None else v.reshape(mean.shape) for v in (call.get("weight"), call.get("bias")))
    more = [x.new_empty(0)] * (len(call.func._schema.returns) - 3)
    return _affine((x - mean) * scale, weight, bias), mean.flatten(), scale.flatten(), *more


def _weight_norm(call: OperatorCall) -> Any:
    """``v * (g / norm(v))``, with the norm over every dim of ``v`` except ``dim``."""
    v, g, dim = call["v"], call["g"], call.get("dim", 0)
    removed = gone(v)
    dims = tuple(d for d in range(v.ndim) if d != dim % v.ndim)
    length = torch.linalg.vector_norm(filled(v), 2, dim=dims, keepdim=True)
    return v * (g / length), with_nan(length, removed.all(dim=dims, keepdim=True))


NORMALIZATIONS: dict[str, Handler] = {
    "native_layer_norm": _layer_norm,
    "_fused_rms_norm": _rms_norm,
    "native_group_norm": _group_norm,
    **dict.fromkeys(
        words(
            """native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_no_update
            cudnn_batch_norm miopen_batch_norm"""
        ),
        _batch_norm,
    ),
    "_weight_norm_interface": _weight_norm,
}


# The value that replaces a removed entry without changing the result.
_FILLS = {"all": 1, "any": 0, "count_nonzero": 0, "sum": 0, "prod": 1}
_OF_ANY_TYPE = ("all", "any", "count_nonzero")


@functools.cache
def _fill(func: torch._ops.OpOverload) -> tuple[int | None, bool]:
    """The replacing value, None for other operators, and whether it is for floats too."""
    name = func._schema.name.removeprefix("aten::")
    if any(argument.is_out for argument in func._schema.arguments):
        return None, False
    return _FILLS.get(name), name in _OF_ANY_TYPE


def is_counting(func: torch._ops.OpOverload, args: tuple[Any, ...]) -> bool:
    """Whether the operator is all, any or count_nonzero, or a sum or product of integers."""
    fill, floats = _fill(func)
    return fill is not None and (floats or (not args[0].is_floating_point() and not args[0].is_complex()))


def counted(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], shadows: Shadows) -> Any:
    """Run such an operator over the kept entries."""
    x = args[0]
    removed = shadows.of(x)
    if removed is None:
        return func(*args, **kwargs)
    removed = removed.expand(x.shape)
    call = OperatorCall(func, (x.masked_fill(removed, _fill(func)[0] or 0), *args[1:]), kwargs)
    result: Tensor = call.run()
    shadows.put(result, all_removed(call, removed))
    return result
