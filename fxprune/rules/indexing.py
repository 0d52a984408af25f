"""Indexing: ``x[...]`` with slices, numbers, None, ellipsis, index tensors; index_select, roll, flip, gather."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from fxprune.axes.elements import Mask
from fxprune.axes.expressions import Axis, Channels, Fixed, gather
from fxprune.rules.call import Axes, Call, concrete, is_tensor
from fxprune.rules.cutting import part
from fxprune.rules.pointwise import broadcast
from fxprune.rules.registry import repairs, rule
from fxprune.rules.repair import Repair, contiguous

_NUMBERED = "it is indexed by number"


def picked(call: Call, axis: Axis, index: np.ndarray[Any, np.dtype[np.int64]]) -> Axis:
    """Elements of an axis by a literal index."""
    if isinstance(call.solver.resolve(axis), Fixed):
        return Fixed(len(index), _NUMBERED)
    if len(index) and contiguous(index.tolist()):
        return part(call, axis, int(index[0]), len(index))
    return gather(axis, index)


def _sliced(call: Call, axis: Axis, item: slice) -> Axis:
    index = np.arange(axis.size, dtype=np.int64)[concrete(item)]
    return axis if len(index) == axis.size else picked(call, axis, index)


def _expand_ellipsis(items: Sequence[Any], rank: int) -> list[Any]:
    consumed = sum(_consumes(i) for i in items if i is not Ellipsis)
    missing = [slice(None)] * (rank - consumed)
    if not any(i is Ellipsis for i in items):
        return [*items, *missing]
    at = next(n for n, i in enumerate(items) if i is Ellipsis)
    return [*items[:at], *missing, *items[at + 1 :]]


def _consumes(item: Any) -> int:
    if item is None or isinstance(item, bool):
        return 0
    value = item.meta.get("val") if isinstance(item, fx.Node) else None
    return value.dim() if isinstance(value, torch.Tensor) and value.dtype == torch.bool else 1


def _is_index_array(item: Any) -> bool:
    return is_tensor(item) or isinstance(item, (list, tuple))


@rule("getitem", "input, index")
def getitem(call: Call) -> None:
    source = call.arguments["input"]
    if not is_tensor(source):
        call.result = _member(call, source)
        return
    indexed(call, call.arguments["index"])


def _member(call: Call, source: Any) -> Any:
    held = call.axes_of(source)
    return None if held is None else held[concrete(call.arguments["index"])]


def indexed(call: Call, index: Any) -> None:
    """Set the axes of ``input[index]`` and note what each item took."""
    axes = list(call.tensor("input"))
    items = _expand_ellipsis(list(index) if isinstance(index, tuple) else [index], len(axes))
    if any(isinstance(concrete(i), bool) or _consumes(i) > 1 for i in items) or _has_mask(items):
        call.pin_all(axes, "it is indexed by a mask")
        call.output_fixed("it is indexed by a mask")
        return
    if any(_is_index_array(i) for i in items):
        _advanced(call, axes, items)
        return
    result: list[Axis] = []
    taken: list[tuple[Any, Axis | None, Axis | None]] = []
    for item in items:
        axis = None if item is None else axes.pop(0)
        piece = _basic(call, axis, item)
        if piece is not None:
            result.append(piece)
        taken.append((item, axis, piece))
    call.notes["taken"] = taken
    call.result = tuple(result)


def _has_mask(items: Sequence[Any]) -> bool:
    return any(isinstance(i, fx.Node) and getattr(i.meta.get("val"), "dtype", None) == torch.bool for i in items)


def _basic(call: Call, axis: Axis | None, item: Any) -> Axis | None:
    """The output axis of one slice, number or None (no output axis for a number)."""
    if axis is None:
        return call.fixed(1)
    if isinstance(item, slice):
        return _sliced(call, axis, item)
    number = int(concrete(item)) % axis.size
    call.pin(part(call, axis, number, 1), "one element of it is taken by its number")
    return None


def _advanced(call: Call, axes: list[Axis], items: list[Any]) -> None:
    """Index tensors: the dims they index keep their numbering; the index tensors' own axes come out."""
    arrays = [(n, i) for n, i in enumerate(items) if _is_index_array(i) or isinstance(concrete(i), int)]
    result: list[Axis] = []
    index_axes: list[Axes] = []
    for item in items:
        axis = None if item is None else axes.pop(0)
        if axis is not None and not isinstance(item, slice):
            call.pin(axis, _NUMBERED)
            if is_tensor(item):
                index_axes.append(tuple(call.axes_of(item)))
            elif isinstance(item, (list, tuple)):
                index_axes.append((call.fixed(len(item)),))
        elif axis is None:
            result.append(call.fixed(1))
        else:
            if item != slice(None):
                call.pin(axis, _NUMBERED)
            result.append(axis if item == slice(None) else call.fixed(len(range(axis.size)[concrete(item)])))
    numbers = [n for n, _ in arrays]
    together = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    at = sum(1 for i in items[: numbers[0]] if not _is_index_array(i)) if together else 0
    result[at:at] = broadcast(call, index_axes)
    call.result = tuple(result)


@repairs("getitem")
def repair_getitem(repair: Repair) -> None:
    repair_index(repair, "index")


def repair_index(repair: Repair, name: str) -> None:
    """Rewrite literal bounds and numbers; a slice whose kept picks are not one run becomes an index_select."""
    taken = repair.call.notes.get("taken")
    if taken is None or not any(axis is not None and repair.shrinks(axis) for _, axis, _ in taken):
        return
    items: list[Any] = []
    selections: list[tuple[int, list[int]]] = []
    for dim, (item, axis, piece) in enumerate(taken):
        if axis is None or not repair.shrinks(axis) or item == slice(None):
            items.append(_new_item(repair, name, item))
            continue
        index = np.atleast_1d(np.arange(axis.size, dtype=np.int64)[concrete(item)])
        kept: Mask = repair.mask(piece) if piece is not None else np.ones(1, dtype=np.bool_)
        positions = repair.positions(axis, index, kept)
        if piece is None:
            items.append(positions[0])
        elif contiguous(positions):
            first = positions[0] if positions else 0
            items.append(slice(first, first + len(positions)))
        else:
            items.append(slice(None))
            selections.append((dim - sum(1 for i, *_ in taken[:dim] if i is None), positions))
    if selections:
        source = repair.arguments["input"]
        for dim, positions in selections:
            source = repair.select(source, dim, positions)
        repair.set("input", source)
    repair.set(name, tuple(items))


def _new_item(repair: Repair, name: str, item: Any) -> Any:
    """The item with the new graph's nodes in it."""
    return fx.node.map_arg(item, repair.mapped)


@rule("setitem", "input, index, value")
def setitem(call: Call) -> None:
    axes = call.tensor("input")
    indexed(call, call.arguments["index"])
    if call.has("value") and call.result is not None:
        target, value = call.result, call.tensor("value")
        if len(value) > len(target):
            call.pin_all((*axes, *value), "a tensor of more dims is written into it")
        else:
            broadcast(call, [target, value])
    call.result = None


@repairs("setitem")
def repair_setitem(repair: Repair) -> None:
    repair_index(repair, "index")


@rule("index_select", "input, dim, index")
def index_select(call: Call) -> None:
    axes, dim = call.tensor("input"), call.dim()
    (index,) = call.tensor("index") or (call.fixed(1),)
    call.pin(axes[dim], _NUMBERED)
    call.result = (*axes[:dim], index, *axes[dim + 1 :])


@rule("roll", "input, *shifts, dims=None")
def roll(call: Call) -> None:
    axes = list(call.tensor("input"))
    dims = call.arguments.get("dims")
    if dims is None:
        call.pin_all(axes, "it is rolled as one flat vector")
        call.result = tuple(axes)
        return
    moved = []
    for dim, shift in zip(call.dims("dims"), call.numbers("shifts"), strict=True):
        size = axes[dim].size
        if shift % size:
            tail, head = (part(call, axes[dim], size - shift % size, shift % size), None)
            head = part(call, axes[dim], 0, size - shift % size)
            moved.append((dim, tail))
            from fxprune.axes.expressions import concat

            axes[dim] = concat((tail, head))
        else:
            moved.append((dim, None))
    call.notes["moved"] = moved
    call.result = tuple(axes)


@repairs("roll")
def repair_roll(repair: Repair) -> None:
    moved = repair.call.notes.get("moved", [])
    if any(tail is not None and repair.shrinks(tail) or _axis_shrinks(repair, dim) for dim, tail in moved):
        old = repair.arguments["shifts"]
        old = old if isinstance(old, (list, tuple)) else (old,)
        shifts = tuple(
            repair.size(tail) if tail is not None and _axis_shrinks(repair, dim) else given
            for (dim, tail), given in zip(moved, old, strict=True)
        )
        repair.set("shifts", shifts)
        repair.set("dims", tuple(dim for dim, _ in moved))


def _axis_shrinks(repair: Repair, dim: int) -> bool:
    return repair.shrinks(repair.call.tensor("input")[dim])


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


def _reversed(call: Call, axis: Axis) -> Axis:
    if isinstance(call.solver.resolve(axis), (Fixed,)):
        return axis
    return gather(axis, np.arange(axis.size - 1, -1, -1, dtype=np.int64))


@rule("gather take_along_dim", "input, dim, index")
def gather_op(call: Call) -> None:
    axes, index = call.tensor("input"), call.tensor("index")
    dim = call.dim()
    call.pin(axes[dim], _NUMBERED)
    for i, (source, target) in enumerate(zip(axes, index, strict=True)):
        if i == dim:
            continue
        if source.size == target.size:
            call.unify(source, target)
        else:
            call.pin(source, _NUMBERED)
            call.pin(target, _NUMBERED)
    call.result = index


@rule("scatter scatter_add index_add index_copy index_fill masked_scatter masked_select nonzero unique", "input")
def by_number(call: Call) -> None:
    for name in call.arguments:
        if call.has(name):
            call.pin_all(call.tensor(name), _NUMBERED)
    call.output_fixed(_NUMBERED)


@rule("tril triu", "input, diagonal=0")
def triangle(call: Call) -> None:
    axes = call.tensor("input")
    call.pin_all(axes[-2:], "rows and columns are compared by number")
    call.result = axes


@rule("diagonal diag_embed diag trace", "input")
def diagonal(call: Call) -> None:
    call.pin_all(call.tensor("input"), "rows and columns are compared by number")
    call.output_fixed("rows and columns are compared by number")


_ = (operator, Channels)
