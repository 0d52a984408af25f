"""Expansion and repetition: a repeated dim of size one is a new width whose count can be rewritten."""

from __future__ import annotations

from fxprune.axes.expressions import ONE, Axis, product
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


@rule("meshgrid", "*tensors")
def meshgrid(call: Call) -> None:
    call.pin_inputs("a coordinate grid is made of it")
    call.output_fixed("it is a coordinate grid")
