"""Padding of any dim with constants (added elements are pieces, negative amounts remove pieces), and related ops."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from fxprune.axes.expressions import ONE, Axis, Fixed, concat, gather, product
from fxprune.rules.call import Axes, Call
from fxprune.rules.joining import part
from fxprune.rules.pointwise import broadcast
from fxprune.rules.registry import module_form, pinned, repairs, rule
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
    """The new axis, and the piece that is added or removed at each end."""
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
        module_form(getattr(nn, f"{_kind}{_n}d"), "pad", more=_arguments, stored={"pad": "padding"})


@rule("roll", "input, shifts, dims=None")
def roll(call: Call) -> None:
    """A shift by ``n`` moves the last ``n`` elements to the front."""
    axes = list(call.tensor("input"))
    if not call.number("dims") and call.number("dims") != 0:
        call.pin_all(axes, "it is rolled as one flat vector")
        call.result = tuple(axes)
        return
    tails: list[tuple[Axis, int]] = []
    for dim, shift in zip(call.dims("dims"), call.numbers("shifts"), strict=True):
        axis = axes[dim]
        moved = shift % axis.size
        tails.append((axis, moved))
        axes[dim] = gather(axis, np.roll(np.arange(axis.size, dtype=np.int64), moved))
    call.notes["tails"] = tails
    call.result = tuple(axes)


@repairs("roll")
def repair_roll(repair: Repair) -> None:
    """The new shift of a narrowed dim is the number of kept elements among the moved ones."""
    tails = repair.call.notes.get("tails", [])
    if not any(repair.shrinks(axis) for axis, _ in tails):
        return
    given = repair.arguments["shifts"]
    given = given if isinstance(given, (list, tuple)) else (given,)
    shifts = [
        int(repair.mask(axis)[axis.size - moved :].sum()) if repair.shrinks(axis) else old
        for old, (axis, moved) in zip(given, tails, strict=True)
    ]
    repair.set("shifts", tuple(shifts))
    repair.set("dims", repair.call.dims("dims"))


@rule("flip", "input, *dims")
def flip(call: Call) -> None:
    axes = list(call.tensor("input"))
    for dim in call.dims("dims"):
        axes[dim] = _reversed(call, axes[dim])
    call.result = tuple(axes)


@rule("fliplr flipud", "input")
def flip_one(call: Call) -> None:
    axes = list(call.tensor("input"))
    dim = 1 if call.name == "fliplr" else 0
    axes[dim] = _reversed(call, axes[dim])
    call.result = tuple(axes)


@rule("rot90", "input, k=1, dims=None")
def rot90(call: Call) -> None:
    """A quarter turn is a transposition and a reversal."""
    axes = list(call.tensor("input"))
    first, second = call.dims("dims") if call.number("dims") else (0, 1)
    turns = int(call.number("k")) % 4
    if turns in (1, 2):
        axes[second] = _reversed(call, axes[second])
    if turns in (2, 3):
        axes[first] = _reversed(call, axes[first])
    if turns % 2:
        axes[first], axes[second] = axes[second], axes[first]
    call.result = tuple(axes)


def _reversed(call: Call, axis: Axis) -> Axis:
    if isinstance(call.solver.resolve(axis), Fixed):
        return axis
    return gather(axis, np.arange(axis.size - 1, -1, -1, dtype=np.int64))


def _expanded(call: Call, axes: Axes) -> Axes:
    shape = call.output_shape
    padded: list[Axis | None] = [None] * (len(shape) - len(axes)) + list(axes)
    return tuple(
        a if a is not None and a.size == s else call.fresh(s, d)
        for d, (a, s) in enumerate(zip(padded, shape, strict=True))
    )


@rule("expand broadcast_to", "input, *size")
def expand(call: Call) -> None:
    call.result = _expanded(call, call.tensor("input"))


@repairs("expand broadcast_to")
def repair_expand(repair: Repair) -> None:
    repair.resize_all("size", repair.call.result)


@rule("broadcast_tensors", "*tensors")
def broadcast_tensors(call: Call) -> None:
    operands = call.tensors("tensors")
    shared = broadcast(call, operands)
    call.result = [shared] * len(operands)


@rule("expand_as", "input, other")
def expand_as(call: Call) -> None:
    axes, other = call.tensor("input"), call.tensor("other")
    offset = len(other) - len(axes)
    for axis, target in zip(axes, other[offset:], strict=True):
        if axis.size != 1:
            call.unify(axis, target)
    call.result = other


@rule("repeat tile", "input, *repeats")
def repeat(call: Call) -> None:
    axes = call.tensor("input")
    counts = call.numbers("repeats")
    counts = (1,) * (len(axes) - len(counts)) + counts
    copies = tuple(call.fresh(count, dim) for dim, count in enumerate(counts))
    repeated = (ONE,) * (len(counts) - len(axes)) + axes
    call.notes["copies"] = copies
    call.result = tuple(product(pair) for pair in zip(copies, repeated, strict=True))


@repairs("repeat tile")
def repair_repeat(repair: Repair) -> None:
    given = len(repair.call.numbers("repeats"))
    repair.resize_all("repeats", repair.call.notes["copies"][-given:])


@rule("repeat_interleave", "input, repeats, dim=None")
def repeat_interleave(call: Call) -> None:
    axes = call.tensor("input")
    if call.has("repeats") or call.number("dim") is None:
        call.pin_inputs("the number of repeats differs from element to element")
        call.output_fixed("the number of repeats differs from element to element")
        return
    dim, count = call.dim(), int(call.number("repeats"))
    copies = call.fresh(count, dim)
    call.notes["copies"] = copies
    call.result = (*axes[:dim], product((axes[dim], copies)), *axes[dim + 1 :])


@repairs("repeat_interleave")
def repair_repeat_interleave(repair: Repair) -> None:
    copies = repair.call.notes.get("copies")
    if copies is None:
        return
    if repair.shrinks(copies):
        repair.set("repeats", repair.resize(repair.arguments["repeats"], copies))
    if repair.arguments.get("output_size") is not None:
        size = repair.resize(repair.arguments["output_size"], repair.call.result[repair.call.dim()])
        repair.set("output_size", size)


pinned("meshgrid", "*tensors", "a coordinate grid is made of it", "it is a coordinate grid")
