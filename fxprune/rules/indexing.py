"""Reading ``x[...]``: slices, numbers, None, ellipsis, index lists and tensors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from fxprune.axes.expressions import Axis, Fixed, IndexArray, gather
from fxprune.rules.call import Axes, Call, concrete, is_tensor
from fxprune.rules.joining import OTHERS, cuts_alike, kept_number, part, pin_taken
from fxprune.rules.ops import is_written
from fxprune.rules.pointwise import broadcast
from fxprune.rules.registry import repairs, rule
from fxprune.rules.repair import Repair, contiguous

NUMBERED = "it is indexed by number"
ALL = slice(None)


@dataclass(frozen=True)
class Taken:
    """The elements that one index item selects: ``positions`` (if known) of ``axis``, as ``piece`` of the result."""

    item: Any
    axis: Axis | None = None
    piece: Axis | None = None
    positions: IndexArray | None = None

    @property
    def is_array(self) -> bool:
        """Whether the item is a list or a tensor of positions."""
        return _is_array(self.item)


def picked(call: Call, axis: Axis, positions: IndexArray) -> Axis:
    """The axis of the elements at known positions of an axis."""
    if isinstance(call.solver.resolve(axis), Fixed):
        return Fixed(len(positions), NUMBERED)
    if len(positions) and contiguous(positions.tolist()):
        return part(call, axis, int(positions[0]), len(positions))
    return gather(axis, positions)


def known_positions(call: Call, item: Any, size: int) -> IndexArray | None:
    """The positions that a list or stored 1-d index tensor selects from ``size`` elements, else None."""
    values = call.stored(item) if isinstance(item, fx.Node) else np.asarray(concrete(item))
    if values is None or values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        return None
    return values.astype(np.int64) % max(size, 1)


def _is_array(item: Any) -> bool:
    return is_tensor(item) or isinstance(item, (list, tuple))


def _is_mask(item: Any) -> bool:
    if isinstance(item, fx.Node):
        return getattr(item.meta["val"], "dtype", None) == torch.bool
    return isinstance(item, bool) or (isinstance(item, (list, tuple)) and any(isinstance(i, bool) for i in item))


def _items(index: Any, rank: int) -> list[Any]:
    """One item for every dim of the source and every new dim."""
    items = list(index) if isinstance(index, tuple) else [index]
    at = next((n for n, i in enumerate(items) if i is Ellipsis), len(items))
    rest = items[at + 1 :]
    consumed = sum(1 for i in (*items[:at], *rest) if i is not None)
    return [*items[:at], *[ALL] * (rank - consumed), *rest]


@rule("getitem", "input, index")
def getitem(call: Call) -> None:
    source = call.arguments["input"]
    if is_tensor(source):
        index = call.arguments["index"]
        (_under_mask if isinstance(index, fx.Node) and _is_mask(index) else taken_by_index)(call)
        return
    held = call.axes_of(source)
    call.result = None if held is None else held[concrete(call.arguments["index"])]


def _under_mask(call: Call) -> None:
    """Entries of the first dims selected by a boolean mask, each with all of the other dims."""
    axes, mask = call.tensor("input"), call.tensor("index")
    call.pin_all((*axes[: len(mask)], *mask), "it is indexed by a mask")
    call.result = (call.fixed(call.output_shape[0], "it is indexed by a mask"), *axes[len(mask) :])


def taken_by_index(call: Call) -> None:
    """Set the axes of ``input[index]`` and note the elements that each item selects."""
    axes = list(call.tensor("input"))
    items = _items(call.arguments["index"], len(axes))
    if any(_is_mask(i) for i in items):
        call.pin_all(axes, "it is indexed by a mask")
        call.output_fixed("it is indexed by a mask")
        return
    arrays = [n for n, i in enumerate(items) if _is_array(i)]
    if not arrays or (len(arrays) == 1 and all(i is None or isinstance(i, slice) or _is_array(i) for i in items)):
        taken = [_take(call, None if item is None else axes.pop(0), item) for item in items]
        result = [axis for t in taken for axis in _result_of(call, t)]
    else:
        taken = [_take_with_arrays(call, None if item is None else axes.pop(0), item) for item in items]
        result = _around_arrays(call, taken)
    call.notes["taken"] = taken
    call.result = tuple(result)


def _take(call: Call, axis: Axis | None, item: Any) -> Taken:
    """One item of an index with at most one array."""
    if axis is None:
        return Taken(item, piece=call.fixed(1))
    if isinstance(item, slice):
        return _slice(call, axis, item)
    if _is_array(item):
        return _array(call, axis, item)
    number = int(concrete(item))
    pin_taken(call, axis, number % axis.size, item)
    if not cuts_alike(call, axis, number):
        call.pin(axis, OTHERS)
    return Taken(item, axis, None, np.array([number % axis.size]))


def _slice(call: Call, axis: Axis, item: slice) -> Taken:
    positions = np.arange(axis.size, dtype=np.int64)[concrete(item)]
    if call.varies(item) or not all(cuts_alike(call, axis, b) for b in _literals(item)):
        call.pin(axis, OTHERS)
    if len(positions) == axis.size:
        return Taken(item, axis, axis, positions)
    if not contiguous(positions.tolist()) and is_written(call.node):
        call.pin(axis, "a slice with a step is written in place")
    return Taken(item, axis, picked(call, axis, positions), positions)


def _literals(item: slice) -> list[int]:
    """The bounds that are written in a slice; a slice with a step may reach the last element."""
    bounds = [int(concrete(b)) for b in (item.start, item.stop) if b is not None]
    return bounds if item.step in (None, 1) else [*bounds, sys.maxsize]


def _array(call: Call, axis: Axis, item: Any) -> Taken:
    positions = known_positions(call, item, axis.size)
    if positions is None:
        if not call.looked_up(axis, item):
            call.pin(axis, NUMBERED)
        return Taken(item, axis)
    if not cuts_alike(call, axis, int(positions.max(initial=0))):
        call.pin(axis, OTHERS)
    call.pin_all(_own_axes(call, item), "its values are positions")
    return Taken(item, axis, picked(call, axis, positions), positions)


def _own_axes(call: Call, array: Any) -> Axes:
    if is_tensor(array):
        return tuple(call.axes_of(array))
    return tuple(call.fixed(s, NUMBERED) for s in np.shape(concrete(array)))


def _result_of(call: Call, taken: Taken) -> Axes:
    if taken.piece is None and taken.is_array:
        return _own_axes(call, taken.item)
    return () if taken.piece is None else (taken.piece,)


def _take_with_arrays(call: Call, axis: Axis | None, item: Any) -> Taken:
    """One item of an index with several arrays, or an array and numbers: the axes they index are not renumbered."""
    if axis is None or isinstance(item, slice):
        return _take(call, axis, item)
    if not call.looked_up(axis, item):
        call.pin(axis, NUMBERED)
    if _is_array(item):
        call.pin_all(_own_axes(call, item), "its values are positions")
    return Taken(item, axis)


def _around_arrays(call: Call, taken: Sequence[Taken]) -> list[Axis]:
    """Arrays and numbers broadcast; their dims come at their place, or first if they are not adjacent."""
    places = [n for n, t in enumerate(taken) if t.piece is None]
    arrays = [t.item for t in taken if t.is_array]
    shared = broadcast(call, [_own_axes(call, a) for a in arrays])
    together = places == list(range(places[0], places[0] + len(places)))
    at = places[0] if together else 0
    before = [t.piece for t in taken[:at] if t.piece is not None]
    after = [t.piece for t in taken[at:] if t.piece is not None]
    return [*before, *shared, *after]


def _positions(repair: Repair, taken: Taken) -> list[int]:
    """The positions of an item's kept elements among the kept elements of its axis."""
    assert taken.axis is not None
    assert taken.positions is not None
    kept = np.ones(1, dtype=np.bool_) if taken.piece is None else repair.mask(taken.piece)
    return repair.positions(taken.axis, taken.positions, kept)


def item_shrinks(repair: Repair, taken: Taken) -> bool:
    """Whether an item must be rewritten; indices that the graph computes already refer to the kept elements."""
    computed = taken.positions is None and taken.is_array
    return taken.axis is not None and not computed and repair.shrinks(taken.axis)


def items_and_picks(repair: Repair, taken: Sequence[Taken]) -> tuple[list[Any], dict[int, list[int]]]:
    """New index items, and by place the positions that are not contiguous."""
    items: list[Any] = []
    picks: dict[int, list[int]] = {}
    for place, entry in enumerate(taken):
        if not item_shrinks(repair, entry) or entry.item == ALL:
            items.append(fx.node.map_arg(entry.item, repair.mapped))
            continue
        positions = _positions(repair, entry)
        if entry.piece is None:
            items.append(_bound(repair, entry, entry.item))
        elif contiguous(positions) and not entry.is_array:
            items.append(_kept_slice(repair, entry, positions))
        else:
            items.append(ALL)
            picks[place] = positions
    return items, picks


def _kept_slice(repair: Repair, taken: Taken, positions: list[int]) -> slice:
    """The range of kept elements; if the dim's size depends on the input, open ends stay open.

    For a slice with a step the kept elements are contiguous only for the sample, so its ends are literal numbers.
    """
    assert taken.axis is not None
    first = positions[0] if positions else 0
    if not positions or repair.is_static(taken.axis) or concrete(taken.item.step) not in (None, 1):
        return slice(first, first + len(positions))
    start, stop = (_bound(repair, taken, b) for b in (taken.item.start, taken.item.stop))
    # If all elements after a bound that counts from the end are removed, the bound is the end.
    return slice(start, None if stop == 0 and concrete(taken.item.stop) < 0 else stop)


def _bound(repair: Repair, taken: Taken, bound: Any) -> int | None:
    """The number of an element among the kept ones, counted from the same end; None stays None."""
    assert taken.axis is not None
    return None if bound is None else kept_number(repair, taken.axis, int(concrete(bound)))


@repairs("getitem")
def repair_getitem(repair: Repair) -> None:
    """Bounds and numbers change; positions that are not contiguous become an index_select before the rest."""
    taken = repair.call.notes.get("taken", ())
    if not any(item_shrinks(repair, t) for t in taken):
        return
    items, picks = items_and_picks(repair, taken)
    source = repair.arguments["input"]
    for place, positions in picks.items():
        source = repair.select(source, sum(1 for t in taken[:place] if t.axis is not None), positions)
    if picks and all(item == ALL for item in items):
        repair.replacement = source
        return
    repair.set("input", source)
    repair.set("index", tuple(items))
