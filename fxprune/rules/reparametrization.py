"""Weights computed from other parameters."""

from __future__ import annotations

from fxprune.rules.call import Call
from fxprune.rules.registry import rule


@rule("_weight_norm", "v, g, dim=0")
def weight_norm(call: Call) -> None:
    """``g * v / |v|`` with the norm over every dim but ``dim``."""
    direction, length = call.tensor("v"), call.tensor("g")
    kept = None if not length else int(call.number("dim")) % len(direction)  # a scalar g: the norm of the whole
    for i, axis in enumerate(direction):
        if i != kept:
            call.crosses((axis,))
        else:
            call.unify(axis, length[i])
    call.role("v", "out", *["in"] * (len(direction) - 1))
    call.result = direction
