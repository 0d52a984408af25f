"""Convolution, pooling, resampling and moves between channels and space."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fxprune.axes.expressions import ONE, Axis, product
from fxprune.rules.call import Axes, Call
from fxprune.rules.registry import module_form, pinned, repairs, rule
from fxprune.rules.repair import Repair

_SLIDES = "a convolution slides over it"
_CONV = "input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1"
_TRANSPOSED = "input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1"


def grouped(call: Call, channels: Axis, out: Axis, inner: Axis, groups: int) -> Axis:
    """Tie input channels to groups times ``inner``, output channels to groups times a share; return the groups axis."""
    if groups == 1:
        call.unify(channels, inner)
        return ONE
    axis = call.fresh(groups)
    call.unify(channels, product((axis, inner)))
    call.unify(out, product((axis, call.fresh(out.size // groups))))
    return axis


def _space(call: Call, axes: Axes, kernel: Axes) -> Axes:
    """Output axes of the spatial dims. A kernel of size one with unit stride passes them through; others pin them."""
    call.pin_all(kernel, "a kernel's extent is fixed")
    sizes = call.output_shape[-len(kernel) :]
    result: list[Axis] = []
    for i, (axis, taps, size) in enumerate(zip(axes, kernel, sizes, strict=True)):
        steps = [_at(call.number(name), i) for name in ("stride", "padding")]
        if taps.size == 1 and steps == [1, 0] and axis.size == size:
            result.append(axis)
        else:
            call.pin(axis, _SLIDES)
            result.append(call.fixed(size, _SLIDES))
    return tuple(result)


def _at(value: Any, i: int) -> Any:
    if isinstance(value, str):
        return 0
    return value[min(i, len(value) - 1)] if isinstance(value, (list, tuple)) else value


def _bias(call: Call, out: Axis) -> None:
    if call.has("bias"):
        call.unify(call.tensor("bias")[0], out)
        call.role("bias", "scale")


@rule("conv1d conv2d conv3d", _CONV)
def convolution(call: Call) -> None:
    axes, weight = call.tensor("input"), call.tensor("weight")
    kernel = weight[2:]
    channel = len(axes) - len(kernel) - 1
    out = weight[0]
    groups = grouped(call, axes[channel], out, weight[1], int(call.number("groups")))
    call.role("weight", "out", "in")
    _bias(call, out)
    space = _space(call, axes[channel + 1 :], kernel)
    call.result = (*axes[:channel], out, *space)
    call.macs((*call.result, *weight[1:]))
    call.notes["groups"] = groups
    call.stores(in_channels=axes[channel], out_channels=out)


@rule("conv_transpose1d conv_transpose2d conv_transpose3d", _TRANSPOSED)
def transposed(call: Call) -> None:
    axes, weight = call.tensor("input"), call.tensor("weight")
    kernel = weight[2:]
    channel = len(axes) - len(kernel) - 1
    groups = ONE if call.number("groups") == 1 else call.fresh(call.number("groups"))
    inner = axes[channel] if groups is ONE else call.fresh(axes[channel].size // groups.size)
    call.unify(axes[channel], product((groups, inner)))
    call.unify(axes[channel], weight[0])
    call.role("weight", "in", "out")
    out = product((groups, weight[1]))
    _bias(call, out)
    call.pin_all((*kernel, *axes[channel + 1 :]), _SLIDES)
    space = tuple(call.fixed(s, _SLIDES) for s in call.output_shape[-len(kernel) :])
    call.result = (*axes[:channel], out, *space)
    call.macs((*axes[: channel + 1], weight[1], *axes[channel + 1 :], *kernel))
    call.notes["groups"] = groups
    call.stores(in_channels=axes[channel], out_channels=out)


@repairs("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d")
def repair_groups(repair: Repair) -> None:
    groups = repair.call.notes["groups"]
    if repair.shrinks(groups):
        repair.set("groups", repair.resize(repair.arguments["groups"], groups))


def _padding(module: Any) -> dict[str, Any]:
    return {"padding": module.padding if module.padding_mode == "zeros" else None}


_WINDOW = "a window slides over it"
_SPACE = "it is resampled"


def _spatial(call: Call, count: int, why: str) -> None:
    axes = call.tensor("input")
    shape = call.output_shape if hasattr(call.value, "shape") else tuple(call.value[0].shape)
    call.pin_all(axes[-count:], why)
    result = (*axes[:-count], *(call.fixed(s, why) for s in shape[-count:]))
    call.result = result if hasattr(call.value, "shape") else [result for _ in call.value]


def _count(name: str) -> int:
    return int(next(c for c in name if c in "123"))


_POOLINGS = """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d fractional_max_pool2d fractional_max_pool3d lp_pool1d lp_pool2d
    lp_pool3d max_pool1d max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices
"""


@rule(_POOLINGS, "input")
def pooling(call: Call) -> None:
    rank = _count(call.name)
    if call.has("_random_samples"):
        call.unify(call.tensor("input")[-rank - 1], call.tensor("_random_samples")[1])
    _spatial(call, rank, _WINDOW)


@rule("max_unpool1d max_unpool2d max_unpool3d", "input, indices")
def unpooling(call: Call) -> None:
    call.unify_all(call.tensor("input"), call.tensor("indices"))
    _spatial(call, _count(call.name), _WINDOW)


@rule("interpolate", "input, size=None, scale_factor=None")
def interpolate(call: Call) -> None:
    _spatial(call, len(call.tensor("input")) - 2, _SPACE)


pinned("affine_grid", "theta", "it is an affine map", "it is a grid of coordinates")


@rule("grid_sample", "input, grid")
def grid_sample(call: Call) -> None:
    axes, grid = call.tensor("input"), call.tensor("grid")
    call.pin_all((*axes[2:], *grid[1:]), _SPACE)
    call.unify(axes[0], grid[0])
    call.result = (*axes[:2], *(call.fixed(s, _SPACE) for s in call.output_shape[2:]))


@rule("unfold", "input, kernel_size, dilation=1, padding=0, stride=1")
def unfold(call: Call) -> None:
    """``F.unfold`` of (N, C, H, W): columns are channels times window. ``Tensor.unfold`` has the same name."""
    axes = call.tensor("input")
    shape = call.output_shape
    if len(shape) == len(axes) + 1:
        dim = int(call.number("dimension" if "dimension" in call.arguments else "kernel_size")) % len(axes)
        call.pin(axes[dim], _WINDOW)
        call.result = (*axes[:dim], call.fixed(shape[dim], _WINDOW), *axes[dim + 1 :], call.fixed(shape[-1], _WINDOW))
        return
    call.pin_all(axes[-2:], _WINDOW)
    channels = product((axes[-3], call.fixed(shape[-2] // axes[-3].size, _WINDOW)))
    call.result = (*axes[:-3], channels, call.fixed(shape[-1], _WINDOW))


@rule("fold", "input, output_size, kernel_size")
def fold(call: Call) -> None:
    axes = call.tensor("input")
    shape = call.output_shape
    taps = axes[-2].size // shape[-3]
    channels, window = call.solver.factor(axes[-2], [shape[-3], taps], call.cause)
    call.pin_all((window, axes[-1]), _WINDOW)
    call.result = (*axes[:-2], channels, call.fixed(shape[-2], _WINDOW), call.fixed(shape[-1], _WINDOW))


@rule("stft istft", "input, n_fft, hop_length=None, win_length=None, window=None")
def short_time_fourier(call: Call) -> None:
    """Signals (..., time) to spectra (..., frequencies, frames), complex or as pairs of reals; and the inverse."""
    axes = call.tensor("input")
    kept = (len(axes) if call.name == "stft" else len(call.output_shape)) - 1
    call.pin_all(axes[kept:], _WINDOW)
    if call.has("window"):
        call.pin_all(call.tensor("window"), _WINDOW)
    call.result = (*axes[:kept], *(call.fixed(s, _WINDOW) for s in call.output_shape[kept:]))


@rule("pixel_shuffle", "input, upscale_factor")
def pixel_shuffle(call: Call) -> None:
    axes, factor = call.tensor("input"), int(call.number("upscale_factor"))
    channels, block = call.solver.factor(axes[-3], [axes[-3].size // factor**2, factor**2], call.cause)
    call.pin_all((block, *axes[-2:]), "it becomes space")
    call.result = (*axes[:-3], channels, *(call.fixed(s, "it is space") for s in call.output_shape[-2:]))


@rule("pixel_unshuffle", "input, downscale_factor")
def pixel_unshuffle(call: Call) -> None:
    axes, factor = call.tensor("input"), int(call.number("downscale_factor"))
    call.pin_all(axes[-2:], "it is space")
    channels = product((axes[-3], call.fixed(factor**2, "it was space")))
    call.result = (*axes[:-3], channels, *(call.fixed(s, "it is space") for s in call.output_shape[-2:]))


@rule("channel_shuffle native_channel_shuffle", "input, groups")
def channel_shuffle(call: Call) -> None:
    axes, groups = call.tensor("input"), int(call.number("groups"))
    outer, inner = call.solver.factor(axes[1], [groups, axes[1].size // groups], call.cause)
    call.notes["groups"] = outer
    call.result = (axes[0], product((inner, outer)), *axes[2:])


for _n in (1, 2, 3):
    for _kind, _rule in (("Conv", "conv"), ("ConvTranspose", "conv_transpose")):
        _cls = getattr(nn, f"{_kind}{_n}d")
        module_form(_cls, f"{_rule}{_n}d", "weight bias stride dilation groups", _padding, {"groups": "groups"})
    for _kind in "avg_pool max_pool lp_pool adaptive_avg_pool adaptive_max_pool max_unpool".split():
        _name = _kind.title().replace("_", "").replace("Lp", "LP")
        module_form(getattr(nn, f"{_name}{_n}d"), f"{_kind}{_n}d")
for _up in (nn.Upsample, nn.UpsamplingBilinear2d, nn.UpsamplingNearest2d):
    module_form(_up, "interpolate")
module_form(nn.PixelShuffle, "pixel_shuffle", "upscale_factor")
module_form(nn.PixelUnshuffle, "pixel_unshuffle", "downscale_factor")
module_form(nn.ChannelShuffle, "channel_shuffle", "groups", stored={"groups": "groups"})
module_form(nn.Unfold, "unfold", "kernel_size")
module_form(nn.Fold, "fold", "output_size kernel_size")


_DEFORMABLE = (
    "input, weight, offset, mask, bias, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups, offset_groups"
)
_OFFSETS = "it numbers the offsets of a deformable kernel"
_REGIONS = "regions are pooled from it"


@rule("deform_conv2d", _DEFORMABLE)
def deformable_convolution(call: Call) -> None:
    """Offsets are 2 * offset groups * taps wide, their mask half of that; a missing mask is passed with width one."""
    axes, weight = call.tensor("input"), call.tensor("weight")
    call.pin_all((*call.tensor("offset")[1:], *call.tensor("mask")[1:]), _OFFSETS)
    call.pin_all((*axes[2:], *weight[2:]), "a convolution slides over it")
    if call.number("offset_groups") != 1:
        call.pin(axes[1], "its groups have offsets of their own")
    groups = grouped(call, axes[1], weight[0], weight[1], int(call.number("groups")))
    call.unify(call.tensor("bias")[0], weight[0])
    call.role("weight", "out", "in")
    call.role("bias", "scale")
    call.result = (axes[0], weight[0], *(call.fixed(s) for s in call.output_shape[2:]))
    call.macs((*call.result, *weight[1:]))
    call.notes["groups"] = groups


repairs("channel_shuffle native_channel_shuffle deform_conv2d")(repair_groups)


@rule("roi_align roi_pool", "input, rois")
def pooled_regions(call: Call) -> None:
    axes = call.tensor("input")
    call.pin_all((axes[0], *axes[2:], *call.tensor("rois")), _REGIONS)
    single = isinstance(call.value, torch.Tensor)
    shape = (call.value if single else call.value[0]).shape
    pooled = (call.fixed(shape[0], _REGIONS), axes[1], *(call.fixed(s, _REGIONS) for s in shape[2:]))
    call.result = pooled if single else [pooled, pooled]
