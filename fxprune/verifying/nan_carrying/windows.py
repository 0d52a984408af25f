"""Pooling and resampling: right by themselves as long as no window mixes removed with kept entries."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .calls import Call, Handler, bury, carries, constant_along, gone, trailing

__all__ = ["WINDOWS"]


def _check_dims(call: Call, x: Tensor, dims: list[int]) -> None:
    if not constant_along(gone(x), dims):
        raise call.fault("slides over a dim that has removed positions")


def _pool(rank: int) -> Handler:
    """A window of ``rank`` dims; along a dim where the window is one entry long nothing is mixed."""

    def handler(call: Call) -> Any:
        x, kernel = call["self"], list(call["kernel_size"])
        kernel = kernel * rank if len(kernel) == 1 else kernel
        _check_dims(call, x, [d for d, size in zip(trailing(x, rank), kernel, strict=True) if size != 1])
        return call.run()

    return handler


def _resample(name: str, rank: int) -> Handler:
    """Adaptive pooling and interpolation; along a dim whose size stays nothing is mixed."""

    def handler(call: Call) -> Any:
        x, result = call[name], call.run()
        out = result[0] if isinstance(result, (tuple, list)) else result
        _check_dims(call, x, [d for d in trailing(x, rank) if out.shape[d] != x.shape[d]])
        return result

    return handler


def _whole_planes(name: str, rank: int) -> Handler:
    """Anything that reads across the last ``rank`` dims of ``name``; no other operand may have removed positions."""

    def handler(call: Call) -> Any:
        x = call[name]
        _check_dims(call, x, list(trailing(x, rank)))
        others = [v for k, v in call.values.items() if k != name and isinstance(v, torch.Tensor)]
        if any(carries(other) for other in others):
            raise call.fault("removed positions reach an operand that says where to read")
        result = call.run()
        # Where nothing is read, zeros appear; those of a removed channel are removed with it.
        channels = gone(x).transpose(0, 1).flatten(1).all(1)
        return bury(result, channels.reshape(1, -1, *[1] * (result.ndim - 2)))

    return handler


def _col2im(call: Call) -> Any:
    """Windows [batch, channels * taps, windows] added up to planes."""
    x, taps = call["self"], math.prod(call["kernel_size"])
    removed = gone(x)
    removed = removed.reshape(*x.shape[:-2], -1, taps, x.shape[-1])
    if not constant_along(removed, [removed.ndim - 2, removed.ndim - 1]):
        raise call.fault("adds removed and kept positions")
    return bury(call.run(), removed.flatten(-2).all(-1)[..., None, None])


_RANKS = (1, 2, 3)
_INTERPOLATIONS = {"linear1d": 1, "bilinear2d": 2, "bicubic2d": 2, "trilinear3d": 3}

WINDOWS: dict[str, Handler] = {
    **{f"avg_pool{rank}d": _pool(rank) for rank in _RANKS},
    **{f"max_pool{rank}d_with_indices": _pool(rank) for rank in _RANKS},
    **{f"{kind}adaptive_avg_pool{rank}d": _resample("self", rank) for rank in _RANKS for kind in ("", "_")},
    **{f"adaptive_max_pool{rank}d": _resample("self", rank) for rank in _RANKS},
    **{f"upsample_nearest{rank}d": _resample("self", rank) for rank in _RANKS},
    **{f"_upsample_nearest_exact{rank}d": _resample("self", rank) for rank in _RANKS},
    **{f"upsample_{kind}": _resample("self", rank) for kind, rank in _INTERPOLATIONS.items()},
    **{f"_upsample_{kind}2d_aa": _resample("self", 2) for kind in ("bilinear", "bicubic", "lanczos")},
    "fractional_max_pool2d": _resample("self", 2),
    "fractional_max_pool3d": _resample("self", 3),
    "grid_sampler_2d": _whole_planes("input", 2),
    "grid_sampler_3d": _whole_planes("input", 3),
    "col2im": _col2im,
    "max_unpool2d": _whole_planes("self", 2),
    "max_unpool3d": _whole_planes("self", 3),
    "roi_align": _whole_planes("input", 2),
    "roi_pool": _whole_planes("input", 2),
}
