"""Reductions and scans over the entries that are left.

A removed entry is replaced by the value that leaves the result alone (0 for a sum, minus infinity for a maximum); a
result over nothing but removed entries is removed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .calls import Call, Handler, bury, constant_along, filled, gone, words

__all__ = ["REDUCTIONS", "all_gone"]


def _dims(call: Call) -> tuple[int, ...]:
    """The dims reduced over, counted from the front; all of them where none is named."""
    x = call["self"]
    dim = call.get("dim")
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return tuple(range(x.ndim))
    listed = dim if isinstance(dim, (list, tuple)) else [dim]
    return tuple(d % max(x.ndim, 1) for d in listed)


def all_gone(call: Call, removed: Tensor) -> Tensor:
    """Where a result is over nothing but removed entries."""
    dims = _dims(call)
    return removed.all(dim=dims, keepdim=bool(call.get("keepdim", False))) if dims else removed


def _with_fill(fill: float) -> Handler:
    def handler(call: Call) -> Any:
        removed = gone(call["self"])
        result = call.run(self=call["self"].masked_fill(removed, fill))
        dead = all_gone(call, removed)
        return pytree.tree_map_only(Tensor, lambda out: bury(out, dead), result)

    return handler


def _count(call: Call, removed: Tensor) -> Tensor:
    kept = (~removed).sum(dim=_dims(call), keepdim=bool(call.get("keepdim", False)))
    return kept.to(call["self"].dtype)


def _mean(call: Call) -> Any:
    x = call["self"] if call.get("dtype") is None else call["self"].to(call["dtype"])
    removed = gone(x)
    total = filled(x).sum(dim=_dims(call), keepdim=bool(call.get("keepdim", False)))
    return bury(total / _count(call, removed), all_gone(call, removed))


def _moments(call: Call) -> tuple[Tensor, Tensor]:
    """Variance and mean over the entries that are left."""
    x, dims, keep = call["self"], _dims(call), bool(call.get("keepdim", False))
    removed = gone(x)
    values = filled(x)
    kept = (~removed).sum(dim=dims, keepdim=True).to(x.dtype)
    mean = values.sum(dim=dims, keepdim=True) / kept
    spread = (values - mean).masked_fill(removed, 0).abs().square().sum(dim=dims, keepdim=keep)
    correction = call.get("correction", 1 if call.get("unbiased", True) else 0)
    divisor = _count(call, removed) - correction
    dead = all_gone(call, removed)
    mean = mean if keep else mean.reshape(spread.shape)
    return bury(spread / divisor.clamp_min(0), dead), bury(mean, dead)


def _var(call: Call) -> Any:
    return _moments(call)[0]


def _std(call: Call) -> Any:
    return _moments(call)[0].sqrt()


def _var_mean(call: Call) -> Any:
    return _moments(call)


def _std_mean(call: Call) -> Any:
    variance, mean = _moments(call)
    return variance.sqrt(), mean


def _norm(call: Call) -> Any:
    order = call.get("ord", call.get("p", 2))
    return _with_fill(math.inf if order < 0 else 0.0)(call)


def _aminmax(call: Call) -> Any:
    x = call["self"]
    removed, keep = gone(x), bool(call.get("keepdim", False))
    dims = _dims(call)
    low = x.masked_fill(removed, math.inf).amin(dim=dims, keepdim=keep)
    high = x.masked_fill(removed, -math.inf).amax(dim=dims, keepdim=keep)
    dead = all_gone(call, removed)
    return bury(low, dead), bury(high, dead)


def _scan(fill: float) -> Handler:
    """Softmax and running totals: as many results as entries, a removed entry stays removed."""

    def handler(call: Call) -> Any:
        removed = gone(call["self"])
        result = call.run(self=call["self"].masked_fill(removed, fill))
        return pytree.tree_map_only(Tensor, lambda out: bury(out, removed), result)

    return handler


def _found(call: Call) -> Any:
    """A value found among the entries that are left, where these are the same ones at every other position."""
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


def _whole(call: Call) -> Any:
    """Sorting and searching along a dim: only where entries are not removed one by one along it."""
    if not constant_along(gone(call["self"]), _dims(call)):
        raise call.fault("orders or searches along a dim that has removed positions")
    return call.run()


def _cdist(call: Call) -> Any:
    left, right = call["x1"], call["x2"]
    difference = left.unsqueeze(-2) - right.unsqueeze(-3)
    removed = gone(difference)
    distance = torch.linalg.vector_norm(filled(difference), call.get("p", 2), dim=-1)
    return bury(distance, removed.all(-1))


def _dist(call: Call) -> Any:
    difference = call["self"] - call["other"]
    order = call.get("p", 2)
    distance = torch.linalg.vector_norm(filled(difference), order)
    return bury(distance, gone(difference).all())


REDUCTIONS: dict[str, Handler] = {
    **dict.fromkeys(("sum", "nansum"), _with_fill(0.0)),
    **dict.fromkeys(("prod",), _with_fill(1.0)),
    **dict.fromkeys(("amax", "max", "logsumexp"), _with_fill(-math.inf)),
    **dict.fromkeys(("amin", "min"), _with_fill(math.inf)),
    **dict.fromkeys(("norm", "linalg_vector_norm"), _norm),
    **dict.fromkeys(("aminmax", "_aminmax"), _aminmax),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax", "logcumsumexp"), _scan(-math.inf)),
    **dict.fromkeys(("median", "mode", "nanmedian"), _found),
    **dict.fromkeys(("cummax",), _scan(-math.inf)),
    **dict.fromkeys(("cummin",), _scan(math.inf)),
    **dict.fromkeys(("cumsum",), _scan(0.0)),
    **dict.fromkeys(("cumprod",), _scan(1.0)),
    **dict.fromkeys(
        words(
            """argmax argmin argsort kthvalue renorm sort topk linalg_cross
            _fft_c2c _fft_c2r _fft_r2c"""
        ),
        _whole,
    ),
    "mean": _mean,
    "var": _var,
    "std": _std,
    "var_mean": _var_mean,
    "std_mean": _std_mean,
    "dist": _dist,
    "_cdist_forward": _cdist,
    "_euclidean_dist": _cdist,
}
