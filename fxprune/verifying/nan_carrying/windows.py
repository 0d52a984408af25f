"""Pooling and resampling: right by themselves as long as no window mixes removed with kept entries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .calls import Call, Handler, carries, constant_along, gone, trailing

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
        return call.run()

    return handler


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
    "col2im": _whole_planes("self", 1),
    "max_unpool2d": _whole_planes("self", 2),
    "max_unpool3d": _whole_planes("self", 3),
    "roi_align": _whole_planes("input", 2),
    "roi_pool": _whole_planes("input", 2),
}
