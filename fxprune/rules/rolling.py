"""roll, flip and rot90: the elements of a dim in another order."""

from __future__ import annotations

import numpy as np

from fxprune.axes.expressions import Axis, Fixed, gather
from fxprune.rules.call import Call
from fxprune.rules.registry import repairs, rule
from fxprune.rules.repair import Repair


@rule("roll", "input, shifts, dims=None")
def roll(call: Call) -> None:
    """A shift by ``n`` brings the last ``n`` elements to the front."""
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
    """The new shift of a narrowed dim is the number of elements that are kept of the moved ones."""
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
