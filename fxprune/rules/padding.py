"""Padding of any dim with constants: what is added are pieces too; negative amounts cut pieces off."""

from __future__ import annotations

from typing import Any

from torch import nn

from fxprune.axes.expressions import Axis, concat
from fxprune.rules.call import Call
from fxprune.rules.cutting import part
from fxprune.rules.registry import ModuleForm, module_form, repairs, rule
from fxprune.rules.repair import Repair


@rule("pad", "input, pad, mode=constant, value=None")
def pad(call: Call) -> None:
    _pad(call, str(call.arguments["mode"]))


@rule("constant_pad_nd", "input, pad, value=None")
def constant_pad(call: Call) -> None:
    _pad(call, "constant")


def _pad(call: Call, mode: str) -> None:
    """``pad`` holds two amounts for every padded dim, the last dim first."""
    axes = list(call.tensor("input"))
    amounts = call.numbers("pad")
    pieces: list[Axis | None] = []
    for i in range(len(amounts) // 2):
        dim, low, high = len(axes) - 1 - i, amounts[2 * i], amounts[2 * i + 1]
        if not low and not high:
            pieces += [None, None]
        elif mode == "constant":
            axes[dim], before, after = _padded(call, axes[dim], dim, low, high)
            pieces += [before, after]
        else:
            call.pin(axes[dim], "it is padded from its own elements")
            axes[dim] = call.fixed(axes[dim].size + low + high)
            pieces += [None, None]
    call.notes["pieces"] = pieces
    call.result = tuple(axes)


def _padded(call: Call, axis: Axis, dim: int, low: int, high: int) -> tuple[Axis, Axis | None, Axis | None]:
    """The new axis, and the piece that is added or cut off at each end."""
    size = axis.size
    before = call.fresh(low, dim) if low > 0 else part(call, axis, 0, -low) if low else None
    after = call.fresh(high, dim) if high > 0 else part(call, axis, size + high, -high) if high else None
    middle = part(call, axis, max(-low, 0), size - max(-low, 0) - max(-high, 0))
    pieces = (before if low > 0 else None, middle, after if high > 0 else None)
    return concat(p for p in pieces if p is not None), before, after


@repairs("pad constant_pad_nd")
def repair_pad(repair: Repair) -> None:
    pieces = repair.call.notes["pieces"]
    if not any(p is not None and repair.shrinks(p) for p in pieces):
        return
    given, amounts = repair.arguments["pad"], repair.call.numbers("pad")
    given = given if isinstance(given, (list, tuple)) else amounts
    repair.set("pad", tuple(_resized(repair, *entry) for entry in zip(given, amounts, pieces, strict=True)))


def _resized(repair: Repair, given: Any, amount: int, piece: Axis | None) -> Any:
    if piece is None or not repair.shrinks(piece):
        return given
    return repair.size(piece) if amount > 0 else -repair.size(piece)


def _arguments(module: Any) -> dict[str, Any]:
    constant = isinstance(module, nn.modules.padding._ConstantPadNd)
    return {"pad": module.padding, "mode": "constant" if constant else "of its own elements"}


for _kind in ("ConstantPad", "ZeroPad", "ReflectionPad", "ReplicationPad", "CircularPad"):
    for _n in (1, 2, 3):
        module_form(getattr(nn, f"{_kind}{_n}d"), ModuleForm("pad", _arguments, (("pad", "padding"),)))
