"""Writing ``x[...] = y``."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from fxprune.rules.call import Call
from fxprune.rules.indexing import ALL, Taken, item_shrinks, items_and_picks, taken_by_index
from fxprune.rules.pointwise import broadcast
from fxprune.rules.registry import repairs, rule
from fxprune.rules.repair import Repair, contiguous


@rule("setitem", "input, index, value")
def setitem(call: Call) -> None:
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


@repairs("setitem")
def repair_setitem(repair: Repair) -> None:
    """As for reading, but through a view: the written positions stay an index of the write itself."""
    taken = repair.call.notes.get("taken", ())
    if not any(item_shrinks(repair, t) for t in taken):
        return
    items, picks = items_and_picks(repair, taken)
    if picks:
        if any(item != ALL for item in items):
            repair.set("input", repair.emit(operator.getitem, repair.arguments["input"], tuple(items)))
        items = [repair.constant(picks[place]) if place in picks else ALL for place in range(len(items))]
    repair.set("index", tuple(items))
