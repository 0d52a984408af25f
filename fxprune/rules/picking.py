"""Elements read or written by index tensors: index_select, gather, scatter and related ops."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fxprune.axes.expressions import Axis
from fxprune.rules.call import Axes, Call, is_tensor
from fxprune.rules.indexing import (
    ALL,
    NUMBERED,
    Taken,
    item_shrinks,
    items_and_picks,
    known_positions,
    picked,
    taken_by_index,
)
from fxprune.rules.pointwise import broadcast
from fxprune.rules.registry import pinned, repairs, rule
from fxprune.rules.repair import Repair, contiguous


@rule("index_select", "input, dim, index")
def index_select(call: Call) -> None:
    axes, dim = call.tensor("input"), call.dim()
    (own,) = call.tensor("index") or (call.fixed(1),)
    positions = known_positions(call, call.arguments["index"], axes[dim].size)
    piece = own
    if positions is None:
        if not call.looked_up(axes[dim], call.arguments["index"]):
            call.pin(axes[dim], NUMBERED)
    else:
        call.pin(own, "its values are positions")
        piece = picked(call, axes[dim], positions)
    call.notes.update(axis=axes[dim], piece=piece, positions=positions, dim=dim)
    call.result = (*axes[:dim], piece, *axes[dim + 1 :])


@repairs("index_select")
def repair_index_select(repair: Repair) -> None:
    notes = repair.call.notes
    if notes["positions"] is not None and repair.shrinks(notes["axis"]):
        positions = repair.positions(notes["axis"], notes["positions"], repair.mask(notes["piece"]))
        repair.replacement = repair.select(repair.arguments["input"], notes["dim"], positions)


def _alongside(call: Call, dim: int, *operands: Axes, numbers: str = "index") -> None:
    """Tie operands on every dim except ``dim``, which is pinned; a shorter operand reads only a part.

    Only the first operand may shrink on ``dim``, together with the axis that ``numbers`` holds indices into.
    """
    first = operands[0]
    looked_up = call.looked_up(first[dim], call.arguments[numbers])
    for axes in operands[looked_up:]:
        call.pin(axes[dim], NUMBERED)
    for axes in operands[1:]:
        for i, (ours, theirs) in enumerate(zip(first, axes, strict=True)):
            if i != dim:
                _tie(call, ours, theirs)


def _tie(call: Call, ours: Axis, theirs: Axis) -> None:
    if ours.size == theirs.size:
        call.unify(ours, theirs)
    elif theirs.size != 1:
        call.pin_all((ours, theirs), NUMBERED)


@rule("gather", "input, dim, index, sparse_grad=False")
def gather(call: Call) -> None:
    _alongside(call, call.dim(), call.tensor("input"), call.tensor("index"))
    call.result = call.tensor("index")


@rule("take_along_dim", "input, indices, dim=None")
def take_along_dim(call: Call) -> None:
    axes, indices = call.tensor("input"), call.tensor("indices")
    if call.number("dim") is None:
        call.pin_all((*axes, *indices), NUMBERED)
        call.output_fixed(NUMBERED)
        return
    dim = call.dim()
    _alongside(call, dim, axes, indices, numbers="indices")
    call.result = tuple(i if d == dim or i.size != 1 else a for d, (a, i) in enumerate(zip(axes, indices, strict=True)))


@rule("scatter scatter_add scatter_reduce", "input, dim, index, src")
def scatter(call: Call) -> None:
    operands = [call.tensor(name) for name in ("input", "index", "src") if call.has(name)]
    _alongside(call, call.dim(), *operands)
    call.result = call.tensor("input")


@rule("index_add index_copy index_reduce", "input, dim, index, source")
def index_write(call: Call) -> None:
    call.pin_all(call.tensor("index"), NUMBERED)
    _alongside(call, call.dim(), call.tensor("input"), call.tensor("source"))
    call.result = call.tensor("input")


@rule("index_fill", "input, dim, index, value")
def index_fill(call: Call) -> None:
    axes = call.tensor("input")
    call.pin_all((axes[call.dim()], *call.tensor("index")), NUMBERED)
    call.result = axes


@rule("bucketize", "input, boundaries")
def bucketize(call: Call) -> None:
    call.pin_all(call.tensor("boundaries"), NUMBERED)
    call.result = call.tensor("input")


pinned("masked_scatter take put index_put searchsorted nonzero argwhere", "input", NUMBERED, NUMBERED)
_COMPARED = "rows and columns are compared by number"
pinned("diag_embed diag trace", "input", _COMPARED, _COMPARED)


@rule("tril triu", "input, diagonal=0")
def triangle(call: Call) -> None:
    axes = call.tensor("input")
    call.pin_all(axes[-2:], _COMPARED)
    call.result = axes


@rule("diagonal", "input, offset=0, dim1=0, dim2=1")
def diagonal(call: Call) -> None:
    axes = call.tensor("input")
    first, second = call.dim("dim1"), call.dim("dim2")
    call.pin_all((axes[first], axes[second]), _COMPARED)
    rest = (a for d, a in enumerate(axes) if d not in (first, second))
    call.result = (*rest, call.fixed(call.output_shape[-1], "it is a diagonal"))


@rule("setitem", "input, index, value")
def setitem(call: Call) -> None:
    if (at := _under_mask(call)) is not None:
        mask = call.axes_of(call.notes["mask"])
        for axis, own in zip(call.tensor("input")[at : at + len(mask)], mask, strict=True):
            call.unify(axis, own)
        return
    taken_by_index(call)
    taken: Sequence[Taken] = call.notes.get("taken", ())
    gathered = [t for t in taken if t.positions is not None and not contiguous(t.positions.tolist())]
    if len(gathered) > 1 or (gathered and any(not isinstance(t.item, slice) and t not in gathered for t in taken)):
        call.pin_all((t.axis for t in gathered if t.axis is not None), "it is written by several lists of positions")
    if call.has("value") and call.result is not None:
        target, value = call.result, call.tensor("value")
        extra = len(value) - len(target)
        call.pin_all(value[: max(extra, 0)], "it is written without it")
        broadcast(call, [target, value[max(extra, 0) :]])
    call.result = None


def _under_mask(call: Call) -> int | None:
    """The first dim that a mask covers, if a call writes one number under it and indexes nothing else; else None."""
    value, index = call.arguments["value"], call.arguments["index"]
    items = list(index) if isinstance(index, tuple) else [index]
    masks = [n for n, item in enumerate(items) if is_tensor(item) and item.meta["val"].dtype is torch.bool]
    others = [item for n, item in enumerate(items) if n not in masks]
    if len(masks) != 1 or any(item is not Ellipsis and item != ALL for item in others):
        return None
    if is_tensor(value) and value.meta["val"].dim():
        return None
    call.notes["mask"] = items[masks[0]]
    behind = items[masks[0] + 1 :]
    if Ellipsis not in items or Ellipsis in behind:
        return masks[0]
    return len(call.tensor("input")) - len(behind) - len(call.axes_of(call.notes["mask"]))


@repairs("setitem")
def repair_setitem(repair: Repair) -> None:
    """As for reading, but through a view: non-contiguous positions remain an index of the write itself."""
    taken = repair.call.notes.get("taken", ())
    if not any(item_shrinks(repair, t) for t in taken):
        return
    items, picks = items_and_picks(repair, taken)
    if picks:
        if any(item != ALL for item in items):
            repair.set("input", repair.emit(operator.getitem, repair.arguments["input"], tuple(items)))
        if is_tensor(repair.call.arguments["value"]) and any(isinstance(taken[place].item, slice) for place in picks):
            # A write through a slice accepts values of any dtype; a write by positions does not.
            repair.set("value", repair.emit("type_as", repair.arguments["value"], repair.arguments["input"]))
        items = [repair.constant(picks[place]) if place in picks else ALL for place in range(len(items))]
    repair.set("index", tuple(items))


_KEPT_WHOLE = "what reads these channels selects its own of them, so all of them stay"


def select_channels(input: Tensor, gate: Tensor, dim: int) -> Tensor:  # noqa: A002  torch's own name for it
    """At full width: ``input`` times ``gate`` (ones, of shape ``(n,)``) along ``dim``, which changes no value.

    Removing an entry of the gate removes the channel for readers of the result, and for nothing else. The rewritten
    network has an ``index_select`` in this place, or nothing if every channel is kept.
    """
    return input * gate.reshape(-1, *[1] * (input.ndim - dim - 1))


@rule("select_channels", "input, gate, dim")
def selection(call: Call) -> None:
    axes, dim = call.tensor("input"), call.dim()
    (own,) = call.tensor("gate")
    call.pin(axes[dim], _KEPT_WHOLE)
    call.role("gate", "selection")
    call.notes.update(source=axes[dim], own=own, dim=dim)
    call.result = (*axes[:dim], own, *axes[dim + 1 :])


@repairs("select_channels")
def repair_selection(repair: Repair) -> None:
    notes = repair.call.notes
    repair.replacement = repair.arguments["input"]
    if repair.shrinks(notes["own"]):
        everything = np.arange(notes["own"].size, dtype=np.int64)
        positions = repair.positions(notes["source"], everything, repair.mask(notes["own"]))
        repair.replacement = repair.select(repair.arguments["input"], notes["dim"], positions)
