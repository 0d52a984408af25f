"""Pooling, resampling and moves between channels and space."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fxprune.axes.expressions import product
from fxprune.rules.call import Call
from fxprune.rules.convolution import grouped
from fxprune.rules.registry import ModuleForm, module_form, repairs, rule
from fxprune.rules.repair import Repair

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


@rule("affine_grid", "theta")
def affine_grid(call: Call) -> None:
    call.pin_inputs("it is an affine map")
    call.output_fixed("it is a grid of coordinates")


@rule("grid_sample", "input, grid")
def grid_sample(call: Call) -> None:
    axes, grid = call.tensor("input"), call.tensor("grid")
    call.pin_all((*axes[2:], *grid[1:]), _SPACE)
    call.unify(axes[0], grid[0])
    call.result = (*axes[:2], *(call.fixed(s, _SPACE) for s in call.output_shape[2:]))


@rule("unfold", "input, kernel_size, dilation=1, padding=0, stride=1")
def unfold(call: Call) -> None:
    """``F.unfold`` of (N, C, H, W): columns are channels times window. ``Tensor.unfold`` shares the name."""
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


@repairs("channel_shuffle native_channel_shuffle")
def repair_channel_shuffle(repair: Repair) -> None:
    groups = repair.call.notes["groups"]
    if repair.shrinks(groups):
        repair.set("groups", repair.resize(repair.arguments["groups"], groups))


def _no_arguments(module: Any) -> dict[str, Any]:
    return {}


for _n in (1, 2, 3):
    for _kind, _rule in (
        ("AvgPool", "avg_pool"),
        ("MaxPool", "max_pool"),
        ("LPPool", "lp_pool"),
        ("AdaptiveAvgPool", "adaptive_avg_pool"),
        ("AdaptiveMaxPool", "adaptive_max_pool"),
    ):
        module_form(getattr(nn, f"{_kind}{_n}d"), ModuleForm(f"{_rule}{_n}d", _no_arguments))
    module_form(getattr(nn, f"MaxUnpool{_n}d"), ModuleForm(f"max_unpool{_n}d", _no_arguments))
for _up in (nn.Upsample, nn.UpsamplingBilinear2d, nn.UpsamplingNearest2d):
    module_form(_up, ModuleForm("interpolate", _no_arguments))
module_form(nn.PixelShuffle, ModuleForm("pixel_shuffle", lambda m: {"upscale_factor": m.upscale_factor}))
module_form(nn.PixelUnshuffle, ModuleForm("pixel_unshuffle", lambda m: {"downscale_factor": m.downscale_factor}))
module_form(nn.ChannelShuffle, ModuleForm("channel_shuffle", lambda m: {"groups": m.groups}, (("groups", "groups"),)))
module_form(nn.Unfold, ModuleForm("unfold", lambda m: {"kernel_size": m.kernel_size}))
module_form(nn.Fold, ModuleForm("fold", lambda m: {"output_size": m.output_size, "kernel_size": m.kernel_size}))


_DEFORMABLE = (
    "input, weight, offset, mask, bias, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups, offset_groups"
)
_OFFSETS = "it numbers the offsets of a deformable kernel"
_REGIONS = "regions are pooled from it"


@rule("deform_conv2d", _DEFORMABLE)
def deformable_convolution(call: Call) -> None:
    """Offsets and their mask are (2 or 1) * offset groups * taps wide; without a mask there is a stand-in of one."""
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


@repairs("deform_conv2d")
def repair_deformable_convolution(repair: Repair) -> None:
    groups = repair.call.notes["groups"]
    if repair.shrinks(groups):
        repair.set("groups", repair.resize(repair.arguments["groups"], groups))


@rule("roi_align roi_pool", "input, rois")
def pooled_regions(call: Call) -> None:
    axes = call.tensor("input")
    call.pin_all((axes[0], *axes[2:], *call.tensor("rois")), _REGIONS)
    single = isinstance(call.value, torch.Tensor)
    shape = (call.value if single else call.value[0]).shape
    pooled = (call.fixed(shape[0], _REGIONS), axes[1], *(call.fixed(s, _REGIONS) for s in shape[2:]))
    call.result = pooled if single else [pooled, pooled]
