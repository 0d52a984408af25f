"""Ops of torchvision with weights or channels: deformable convolution and pooling of regions."""

from __future__ import annotations

import torch

from fxprune.rules.call import Call
from fxprune.rules.convolution import grouped
from fxprune.rules.registry import repairs, rule
from fxprune.rules.repair import Repair

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
