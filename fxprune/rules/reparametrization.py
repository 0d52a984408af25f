"""Weights computed from other parameters."""

from __future__ import annotations

from fxprune.axes.expressions import ONE
from fxprune.rules.call import Call
from fxprune.rules.registry import rule


@rule("_weight_norm weight_norm", "v, g, dim=0")
def weight_norm(call: Call) -> None:
    """``g * v / |v|`` with the norm over every dim but ``dim``."""
    direction, length = call.tensor("v"), call.tensor("g")
    dim = int(call.number("dim"))
    for i, (axis, scale) in enumerate(zip(direction, length, strict=True)):
        if scale.size != 1:
            call.unify(axis, scale)
        if i != dim % len(direction):
            call.crosses((axis,))
    call.role("v", "out", *["in"] * (len(direction) - 1))
    call.result = direction


_ = ONE
