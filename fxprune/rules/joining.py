"""Concatenation and stacking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fxprune.axes.expressions import ONE, Axis, Fixed, concat, has_fixed, parts_of
from fxprune.rules.call import Axes, Call
from fxprune.rules.registry import module_form, repairs, rule
from fxprune.rules.repair import Repair


@rule("cat", "tensors, dim=0")
def cat(call: Call) -> None:
    pieces = [axes for axes in call.tensors("tensors") if not (len(axes) == 1 and axes[0].size == 0)]
    call.result = joined(call, pieces, int(call.number("dim")) % len(pieces[0]))


def joined(call: Call, pieces: Sequence[Axes], dim: int) -> Axes:
    """The axes of tensors concatenated on ``dim``; all other dims are tied."""
    for axes in pieces[1:]:
        for i, (first, other) in enumerate(zip(pieces[0], axes, strict=True)):
            if i != dim:
                call.unify(first, other)
    result = list(pieces[0])
    result[dim] = concat(axes[dim] for axes in pieces)
    return tuple(result)


_DIMS = {"hstack": 1, "column_stack": 1, "vstack": 0, "row_stack": 0, "dstack": 2}


@rule(" ".join(_DIMS), "tensors")
def stack_by_name(call: Call) -> None:
    """Concatenation on the dim that the name implies, after tensors with fewer dims get the missing ones."""
    pieces = [_raised(call.name, axes) for axes in call.tensors("tensors")]
    call.result = joined(call, pieces, min(_DIMS[call.name], len(pieces[0]) - 1))


def _raised(name: str, axes: Axes) -> Axes:
    if name == "column_stack":
        return (*axes, ONE) if len(axes) == 1 else axes
    if name in ("vstack", "row_stack", "dstack") and len(axes) == 1:
        axes = (ONE, *axes)
    return (*axes, ONE) if name == "dstack" and len(axes) == 2 else axes


@rule("stack", "tensors, dim=0")
def stack(call: Call) -> None:
    pieces = call.tensors("tensors")
    for axes in pieces[1:]:
        call.unify_all(pieces[0], axes)
    call.joins(pieces[0])
    result = list(pieces[0])
    result.insert(int(call.number("dim")) % (len(result) + 1), call.fixed(len(pieces), "tensors are stacked on it"))
    call.result = tuple(result)


OTHERS = "an input of another size takes other elements of it"


def part(call: Call, axis: Axis, start: int, length: int) -> Axis:
    """The elements ``start`` to ``start + length`` of an axis."""
    sizes = [start, length, axis.size - start - length]
    if sizes[0] == 0 and sizes[2] == 0:
        return axis
    present = [s for s in sizes if s]
    pieces = call.solver.split(axis, present, call.cause)
    return pieces[1 if start else 0]


def cuts_alike(call: Call, axis: Axis, number: int) -> bool:
    """Whether the channels before element ``number`` (after it, if it is negative) are at the same place at every size.

    After a part whose size depends on the input (the tokens of an image), channels move with that size.
    """
    parts = parts_of(call.solver.resolve(axis))
    reached = number if number >= 0 else -number
    varies, offset = False, 0
    for piece in parts if number >= 0 else reversed(parts):
        if varies and not isinstance(piece, Fixed) and offset < reached:
            return False
        # A single element comes from a parameter, such as a class token.
        varies = varies or (has_fixed(piece) and piece.size > 1)
        offset += piece.size
    return True


def kept_number(repair: Repair, axis: Axis, number: int) -> int:
    """The number of an element among the kept ones, counted from the end that ``number`` counts from."""
    mask = repair.mask(axis)
    return int(mask[:number].sum()) if number >= 0 else -int(mask[number:].sum())


def pin_taken(call: Call, axis: Axis, number: int, written: Any) -> None:
    """Keep the element that is selected by number; keep all if ``written``, the number's argument, is a size."""
    if call.varies(written):
        call.pin(axis, OTHERS)
    else:
        call.pin(part(call, axis, number, 1), "one element of it is taken by its number")


def _parts(call: Call, dim: int, sizes: Sequence[int]) -> None:
    axes = call.tensor("input")
    written = call.arguments["split_size_or_sections"]
    if any(map(call.varies, written if isinstance(written, (list, tuple)) else [written])):
        call.pin(axes[dim], OTHERS)
    pieces = call.solver.split(axes[dim], sizes, call.cause) if len(sizes) > 1 else [axes[dim]]
    call.notes.update(dim=dim, pieces=pieces)
    call.result = [(*axes[:dim], piece, *axes[dim + 1 :]) for piece in pieces]


@rule(
    "split split_with_sizes chunk unsafe_chunk unsafe_split unsafe_split_with_sizes tensor_split",
    "input, split_size_or_sections, dim=0",
)
def split(call: Call) -> None:
    dim = call.dim()
    _parts(call, dim, [int(v.shape[dim]) for v in call.value])


@rule("hsplit vsplit dsplit", "input, split_size_or_sections")
def split_by_name(call: Call) -> None:
    """Splits on the dim that the name implies."""
    dim = {"hsplit": 1, "vsplit": 0, "dsplit": 2}[call.name]
    dim = min(dim, len(call.tensor("input")) - 1)
    _parts(call, dim, [int(v.shape[dim]) for v in call.value])


@repairs(
    "split split_with_sizes chunk unsafe_chunk unsafe_split unsafe_split_with_sizes tensor_split hsplit vsplit dsplit"
)
def repair_split(repair: Repair) -> None:
    """Every form becomes a split into the kept sizes."""
    pieces = repair.call.notes["pieces"]
    if any(repair.shrinks(p) for p in pieces):
        sizes = [repair.size(p) for p in pieces]
        repair.replacement = repair.emit(torch.split, repair.arguments["input"], sizes, repair.call.notes["dim"])


@rule("unbind", "input, dim=0")
def unbind(call: Call) -> None:
    axes, dim = call.tensor("input"), call.dim()
    call.pin(axes[dim], "its elements are taken one by one")
    rest = (*axes[:dim], *axes[dim + 1 :])
    call.result = [rest for _ in range(axes[dim].size)]


@rule("narrow narrow_copy", "input, dim, start, length")
def narrow(call: Call) -> None:
    axes, dim = call.tensor("input"), call.dim()
    start, length = int(call.number("start")) % max(axes[dim].size, 1), int(call.number("length"))
    if call.varies(call.arguments["start"]) or call.varies(call.arguments["length"]):
        call.pin(axes[dim], OTHERS)
    piece = part(call, axes[dim], start, length)
    call.notes.update(before=part(call, axes[dim], 0, start) if start else None, piece=piece)
    call.result = (*axes[:dim], piece, *axes[dim + 1 :])


@repairs("narrow narrow_copy")
def repair_narrow(repair: Repair) -> None:
    before, piece = repair.call.notes["before"], repair.call.notes["piece"]
    if before is not None and repair.shrinks(before):
        repair.set("start", repair.size(before))
    if repair.shrinks(piece):
        repair.set("length", repair.size(piece))


@rule("select", "input, dim, index")
def select(call: Call) -> None:
    axes, dim = call.tensor("input"), call.dim()
    index = int(call.number("index"))
    pin_taken(call, axes[dim], index % axes[dim].size, call.arguments["index"])
    if not cuts_alike(call, axes[dim], index):
        call.pin(axes[dim], OTHERS)
    call.notes.update(axis=axes[dim], index=index)
    call.result = (*axes[:dim], *axes[dim + 1 :])


@repairs("select")
def repair_select(repair: Repair) -> None:
    notes = repair.call.notes
    if repair.shrinks(notes["axis"]):
        repair.set("index", kept_number(repair, notes["axis"], notes["index"]))


@rule("glu", "input, dim=-1")
def glu(call: Call) -> None:
    axes, dim = call.tensor("input"), call.dim()
    half = axes[dim].size // 2
    left, right = call.solver.split(axes[dim], [half, half], call.cause)
    call.unify(left, right)
    call.result = (*axes[:dim], left, *axes[dim + 1 :])


module_form(nn.GLU, "glu", "dim")
