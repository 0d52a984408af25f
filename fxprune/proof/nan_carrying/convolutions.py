"""Convolutions over the input channels that both the input and the weight keep; pooling and interpolation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fxprune.proof.nan_carrying.calls import (
    Handler,
    OperatorCall,
    carries,
    constant_along,
    filled,
    gone,
    trailing,
    with_nan,
)
from fxprune.proof.nan_carrying.contractions import has_copies


def _convolution(call: OperatorCall) -> Any:
    x, weight = call["input"], call["weight"]
    x_gone, weight_gone = gone(x), gone(weight)
    bias = call.get("bias")
    kept = {"input": filled(x), "weight": filled(weight), "bias": None}
    removed = _removed_channels(call, x_gone, weight_gone)
    if removed is None:
        removed = _removed_entries(call, kept, x_gone, weight_gone)
    result = with_nan(call.run(**kept), removed)
    return result if bias is None else result + _per_channel(bias, x)


def _per_channel(vector: Tensor, x: Tensor) -> Tensor:
    return vector.reshape(1, -1, *[1] * (x.ndim - 2))


def _removed_channels(call: OperatorCall, x_gone: Tensor, weight_gone: Tensor) -> Tensor | None:
    """Removed output channels, if whole input channels are removed and the weight lost the same ones; else None."""
    groups = call["groups"]
    if not constant_along(x_gone, [0, *range(2, x_gone.ndim)]):
        return None
    channels = x_gone.transpose(0, 1).flatten(1).any(1).reshape(groups, 1, -1)  # [group, 1, input]
    taps = _by_group(weight_gone, groups, call["transposed"])  # [group, output, input, taps]
    if not constant_along(taps, [3]):
        return None
    weights = taps.all(3)
    dead = weights.all(2) | channels.all(2)  # [group, output]
    if bool(((weights != channels) & ~dead[..., None]).any()):
        return None
    return _per_channel(dead.flatten(), x_gone)


def _by_group(weight: Tensor, groups: int, transposed: bool) -> Tensor:
    split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return split.transpose(1, 2) if transposed else split


def _removed_entries(call: OperatorCall, kept: dict[str, Any], x_gone: Tensor, weight_gone: Tensor) -> Tensor:
    """Removed output entries, tap by tap. Raises ProofError: a kept one pairs removed with kept operands."""

    def count(x_mask: Tensor, weight_mask: Tensor) -> Tensor:
        result: Tensor = call.run(input=x_mask.float(), weight=weight_mask.float(), bias=None)
        return result > 0.5

    every_x, every_weight = torch.ones_like(x_gone), torch.ones_like(weight_gone)
    # A window that lies entirely in the padding holds no entry, removed or kept, so both counts are needed.
    dead = count(x_gone, every_weight) & ~count(~x_gone, every_weight)
    dead |= count(every_x, weight_gone) & ~count(every_x, ~weight_gone)
    rows = _by_group(weight_gone, call["groups"], call["transposed"]).flatten(2).all(2).flatten()
    dead |= _per_channel(rows, x_gone)
    x_lost = count(x_gone, (kept["weight"] != 0) & ~weight_gone) & ~dead
    weight_lost = count((kept["input"] != 0) & ~x_gone, weight_gone) & ~dead
    if bool(x_lost.any()):
        raise call.mismatch(
            "an input position is removed that the weight keeps, or the kernel slides over removed ones"
        )
    if bool(weight_lost.any()) and not _is_free(kept["input"], x_gone, weight_gone, call):
        raise call.mismatch("the weight lost input channels that the input keeps")
    return dead


def _is_free(x: Tensor, x_gone: Tensor, weight_gone: Tensor, call: OperatorCall) -> bool:
    """Whether the input lost nothing, and in each group its channels that the weight lost copy kept ones."""
    if bool(x_gone.any()):
        return False
    taps = _by_group(weight_gone, call["groups"], call["transposed"])
    rows = taps.flatten(2).all(2)[..., None, None]
    lost = (taps & ~rows).any(3).any(1)  # [group, input]
    grouped = x.reshape(x.shape[0], *lost.shape, -1)
    return all(has_copies(grouped[:, group], 1, lost[group]) for group in range(len(lost)))


def _conv_tbc(call: OperatorCall) -> Any:
    """[time, batch, channel] input with a [tap, input, output] weight, as a one-dimensional convolution."""
    x, weight = call["self"].permute(1, 2, 0), call["weight"].permute(2, 1, 0)
    one = [1]
    options = ([1], [call.get("pad", 0)], one, False, [0], 1)
    inner = OperatorCall(torch.ops.aten.convolution.default, (x, weight, call["bias"], *options), {})
    return _convolution(inner).permute(2, 0, 1)


def _deform_conv(call: OperatorCall) -> Any:
    x, weight = call["input"], call["weight"]
    x_gone, weight_gone = gone(x), gone(weight)
    call.values["transposed"] = False
    removed = _removed_channels(call, x_gone, weight_gone)
    if removed is None:
        raise call.mismatch("its input and its weight lost different channels")
    return with_nan(call.run(input=filled(x), weight=filled(weight)), removed)


CONVOLUTIONS: dict[str, Handler] = {"convolution": _convolution, "conv_tbc": _conv_tbc, "deform_conv2d": _deform_conv}


def _check_dims(call: OperatorCall, x: Tensor, dims: list[int]) -> None:
    if not constant_along(gone(x), dims):
        raise call.fault("slides over a dim that has removed positions")


def _pool(rank: int) -> Handler:
    """Pooling over ``rank`` dims; along a dim where the window has size 1 nothing is mixed."""

    def handler(call: OperatorCall) -> Any:
        x, kernel = call["self"], list(call["kernel_size"])
        kernel = kernel * rank if len(kernel) == 1 else kernel
        _check_dims(call, x, [d for d, size in zip(trailing(x, rank), kernel, strict=True) if size != 1])
        return call.run()

    return handler


def _resample(rank: int) -> Handler:
    """Adaptive pooling and interpolation; along a dim whose size does not change nothing is mixed."""

    def handler(call: OperatorCall) -> Any:
        x, result = call["self"], call.run()
        out = result[0] if isinstance(result, (tuple, list)) else result
        _check_dims(call, x, [d for d in trailing(x, rank) if out.shape[d] != x.shape[d]])
        return result

    return handler


def _whole_planes(name: str, rank: int) -> Handler:
    """An operator that reads anywhere in the last ``rank`` dims of ``name``; no other operand may lose entries."""

    def handler(call: OperatorCall) -> Any:
        x = call[name]
        _check_dims(call, x, list(trailing(x, rank)))
        others = [v for k, v in call.values.items() if k != name and isinstance(v, torch.Tensor)]
        if any(carries(other) for other in others):
            raise call.fault("removed positions reach an operand that says where to read")
        result = call.run()
        # Outputs that read nothing are zero; those of a removed channel are removed with it.
        channels = gone(x).transpose(0, 1).flatten(1).all(1)
        return with_nan(result, channels.reshape(1, -1, *[1] * (result.ndim - 2)))

    return handler


def _col2im(call: OperatorCall) -> Any:
    """Sums windows [batch, channels * taps, windows] into planes."""
    x, taps = call["self"], math.prod(call["kernel_size"])
    removed = gone(x)
    removed = removed.reshape(*x.shape[:-2], -1, taps, x.shape[-1])
    if not constant_along(removed, [removed.ndim - 2, removed.ndim - 1]):
        raise call.fault("adds removed and kept positions")
    return with_nan(call.run(), removed.flatten(-2).all(-1)[..., None, None])


_RANKS = (1, 2, 3)
_INTERPOLATIONS = {"linear1d": 1, "bilinear2d": 2, "bicubic2d": 2, "trilinear3d": 3}

WINDOWS: dict[str, Handler] = {
    **{f"avg_pool{rank}d": _pool(rank) for rank in _RANKS},
    **{f"max_pool{rank}d_with_indices": _pool(rank) for rank in _RANKS},
    **{f"{kind}adaptive_avg_pool{rank}d": _resample(rank) for rank in _RANKS for kind in ("", "_")},
    **{f"adaptive_max_pool{rank}d": _resample(rank) for rank in _RANKS},
    **{f"upsample_nearest{rank}d": _resample(rank) for rank in _RANKS},
    **{f"_upsample_nearest_exact{rank}d": _resample(rank) for rank in _RANKS},
    **{f"upsample_{kind}": _resample(rank) for kind, rank in _INTERPOLATIONS.items()},
    **{f"_upsample_{kind}2d_aa": _resample(2) for kind in ("bilinear", "bicubic", "lanczos")},
    "fractional_max_pool2d": _resample(2),
    "fractional_max_pool3d": _resample(3),
    "grid_sampler_2d": _whole_planes("input", 2),
    "grid_sampler_3d": _whole_planes("input", 3),
    "col2im": _col2im,
    "max_unpool2d": _whole_planes("self", 2),
    "max_unpool3d": _whole_planes("self", 3),
    "roi_align": _whole_planes("input", 2),
    "roi_pool": _whole_planes("input", 2),
}
