"""Convolutions of one to three dims, plain and transposed, with groups: ``x.C = Product(g, i)``, ``W1 = i``."""

from __future__ import annotations

from typing import Any

from torch import nn

from fxprune.axes.expressions import ONE, Axis, product
from fxprune.rules.call import Axes, Call
from fxprune.rules.registry import ModuleForm, module_form, repairs, rule
from fxprune.rules.repair import Repair

_SLIDES = "a convolution slides over it"
_CONV = "input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1"
_TRANSPOSED = "input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1"


def grouped(call: Call, channels: Axis, out: Axis, inner: Axis, groups: int) -> Axis:
    """Input channels are groups times ``inner``, output channels groups times a share; gives the groups axis."""
    if groups == 1:
        call.unify(channels, inner)
        return ONE
    axis = call.fresh(groups)
    call.unify(channels, product((axis, inner)))
    call.unify(out, product((axis, call.fresh(out.size // groups))))
    return axis


def _space(call: Call, axes: Axes, kernel: Axes) -> Axes:
    """Output axes of the dims slid over. A kernel of one with unit stride maps them; any other pins them."""
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
    call.notes.update(groups=groups, channels=axes[channel], out=out)


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
    call.notes.update(groups=groups, channels=axes[channel], out=out)


@repairs("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d")
def repair_convolution(repair: Repair) -> None:
    notes = repair.call.notes
    if repair.shrinks(notes["groups"]):
        repair.set("groups", repair.resize(repair.arguments["groups"], notes["groups"]))
    repair.attributes.update(in_channels=repair.size(notes["channels"]), out_channels=repair.size(notes["out"]))


def _arguments(module: Any) -> dict[str, Any]:
    padding = module.padding if module.padding_mode == "zeros" else None
    return {
        "weight": ".weight",
        "bias": module.bias is not None and ".bias",
        "stride": module.stride,
        "padding": padding,
        "dilation": module.dilation,
        "groups": module.groups,
    }


for _cls, _name in (
    (nn.Conv1d, "conv1d"),
    (nn.Conv2d, "conv2d"),
    (nn.Conv3d, "conv3d"),
    (nn.ConvTranspose1d, "conv_transpose1d"),
    (nn.ConvTranspose2d, "conv_transpose2d"),
    (nn.ConvTranspose3d, "conv_transpose3d"),
):
    module_form(_cls, ModuleForm(_name, _arguments, (("groups", "groups"),)))
