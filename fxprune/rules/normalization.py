"""Normalisation: per channel (batch norm) it maps channels, over channels (layer, group, RMS norm) it crosses them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fxprune.axes.expressions import Axis
from fxprune.rules.call import Call
from fxprune.rules.registry import module_form, pinned, repairs, rule
from fxprune.rules.repair import Repair

_STATISTICS = ("running_mean", "running_var", "weight", "bias")
_BATCH = "input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5"
_INSTANCE = "input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, unbatched=-1"


def _per_channel(call: Call, channel: Axis) -> None:
    for name in _STATISTICS:
        if call.has(name):
            call.unify(channel, call.tensor(name)[0])
            call.role(name, "scale")
    call.stores(num_features=channel)


@rule("batch_norm", _BATCH)
def batch_norm(call: Call) -> None:
    axes = call.tensor("input")
    _per_channel(call, axes[1])
    if call.number("training"):
        call.crosses(a for i, a in enumerate(axes) if i != 1)
    call.result = axes


def _normalize(call: Call, axes: Sequence[Axis]) -> None:
    """Statistics are taken over ``axes``; over a single value a norm returns zero or fails."""
    call.crosses(axes)
    call.keeps(sorted(axes, key=lambda axis: -axis.size)[:1])


@rule("instance_norm", _INSTANCE)
def instance_norm(call: Call) -> None:
    axes = call.tensor("input")
    channel = 0 if len(axes) == call.arguments["unbatched"] else 1
    _per_channel(call, axes[channel])
    _normalize(call, axes[channel + 1 :])
    call.result = axes


@rule("layer_norm rms_norm", "input, normalized_shape, weight=None, bias=None, eps=1e-5")
def layer_norm(call: Call) -> None:
    axes = call.tensor("input")
    count = len(call.numbers("normalized_shape"))
    for name in ("weight", "bias"):
        if call.has(name):
            call.unify_all(axes[-count:], call.tensor(name))
            call.role(name, *["scale"] * count)
    _normalize(call, axes[-count:])
    call.notes["normalized"] = axes[-count:]
    call.result = axes


@repairs("layer_norm rms_norm")
def repair_layer_norm(repair: Repair) -> None:
    repair.resize_all("normalized_shape", repair.call.notes["normalized"])


@rule("group_norm", "input, num_groups, weight=None, bias=None, eps=1e-5")
def group_norm(call: Call) -> None:
    axes = call.tensor("input")
    channel, count = axes[1], call.number("num_groups")
    for name in ("weight", "bias"):
        if call.has(name):
            call.unify(channel, call.tensor(name)[0])
            call.role(name, "scale")
    groups, inner = call.solver.factor(channel, [count, channel.size // count], call.cause)
    _normalize(call, (inner, *axes[2:]))
    call.notes["groups"] = groups
    call.stores(num_channels=channel)
    call.result = axes


@repairs("group_norm")
def repair_group_norm(repair: Repair) -> None:
    groups = repair.call.notes["groups"]
    if repair.shrinks(groups):
        repair.set("num_groups", repair.resize(repair.arguments["num_groups"], groups))


@rule("local_response_norm", "input, size")
def local_response_norm(call: Call) -> None:
    axes = call.tensor("input")
    call.pin(axes[1], "a window slides over neighbouring channels")
    call.result = axes


_AFFINE = " ".join(_STATISTICS)
for _cls in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
    module_form(_cls, "batch_norm", _AFFINE, lambda m: {"training": m.training or m.running_mean is None})
for _cls2 in (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d):
    module_form(_cls2, "instance_norm", _AFFINE, lambda m: {"unbatched": m._get_no_batch_dim()})
_SHAPE = {"normalized_shape": "normalized_shape"}
module_form(nn.LayerNorm, "layer_norm", "normalized_shape weight bias", stored=_SHAPE)
module_form(nn.RMSNorm, "rms_norm", "normalized_shape weight", stored=_SHAPE)
module_form(nn.GroupNorm, "group_norm", "num_groups weight bias", stored={"num_groups": "num_groups"})
module_form(nn.LocalResponseNorm, "local_response_norm", "size")


@rule("_weight_norm", "v, g, dim=0")
def weight_norm(call: Call) -> None:
    """``g * v / |v|`` with the norm over every dim but ``dim``."""
    direction, length = call.tensor("v"), call.tensor("g")
    kept = None if not length else int(call.number("dim")) % len(direction)  # a scalar g: one norm of the whole tensor
    for i, axis in enumerate(direction):
        if i != kept:
            call.crosses((axis,))
        else:
            call.unify(axis, length[i])
    call.role("v", "out", *["in"] * (len(direction) - 1))
    call.result = direction


_LOSSES = """
    binary_cross_entropy binary_cross_entropy_with_logits cosine_embedding_loss cross_entropy
    hinge_embedding_loss huber_loss kl_div l1_loss margin_ranking_loss mse_loss multi_margin_loss multilabel_margin_loss
    multilabel_soft_margin_loss nll_loss poisson_nll_loss smooth_l1_loss soft_margin_loss triplet_margin_loss
"""


pinned(_LOSSES, "input", "a loss compares it", "it is a loss")
