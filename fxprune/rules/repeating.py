"""Expansion and repetition: a repeated dim of size one is a new width whose count can be rewritten."""

from __future__ import annotations

from fxprune.axes.expressions import Axis, product
from fxprune.rules.call import Axes, Call
from fxprune.rules.pointwise import broadcast
from fxprune.rules.registry import repairs, rule
from fxprune.rules.repair import Repair


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
    padded = (None,) * (len(counts) - len(axes)) + axes
    result: list[Axis] = []
    for dim, (axis, count) in enumerate(zip(padded, counts, strict=True)):
        if count == 1:
            result.append(axis if axis is not None else call.fixed(1))
        elif axis is None or axis.size == 1:
            result.append(call.fresh(count, dim))
        else:
            result.append(product((call.fixed(count, "the number of repeats is fixed"), axis)))
    call.notes["counts"] = tuple(
        axis if count != 1 and (old is None or old.size == 1) else call.fixed(count)
        for axis, old, count in zip(result, padded, counts, strict=True)
    )
    call.result = tuple(result)


@repairs("repeat tile")
def repair_repeat(repair: Repair) -> None:
    counts = repair.call.notes["counts"]
    given = len(repair.call.numbers("repeats"))
    repair.resize_all("repeats", counts[-given:])


@rule("repeat_interleave", "input, repeats, dim=None")
def repeat_interleave(call: Call) -> None:
    axes = call.tensor("input")
    if call.has("repeats") or call.number("dim") is None:
        call.pin_inputs("the number of repeats differs from element to element")
        call.output_fixed("the number of repeats differs from element to element")
        return
    dim, count = call.dim(), int(call.number("repeats"))
    axis = axes[dim]
    wide = call.fresh(count, dim) if axis.size == 1 else product((axis, call.fixed(count, "the repeats are fixed")))
    call.notes["count"] = wide if axis.size == 1 else None
    call.result = (*axes[:dim], wide, *axes[dim + 1 :])


@repairs("repeat_interleave")
def repair_repeat_interleave(repair: Repair) -> None:
    count = repair.call.notes.get("count")
    if count is not None and repair.shrinks(count):
        repair.set("repeats", repair.resize(repair.arguments["repeats"], count))


@rule("meshgrid", "*tensors")
def meshgrid(call: Call) -> None:
    call.pin_inputs("a coordinate grid is made of it")
    call.output_fixed("it is a coordinate grid")
