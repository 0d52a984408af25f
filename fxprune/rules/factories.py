"""Tensors made inside the forward: their sizes follow what they meet, their values keep the numbers they had."""

from __future__ import annotations

from fxprune.rules.call import Axes, Call, is_tensor
from fxprune.rules.registry import repairs, rule
from fxprune.rules.repair import Repair


def _fresh_axes(call: Call) -> Axes:
    return tuple(call.fresh(s, d) for d, s in enumerate(call.output_shape))


@rule("zeros ones empty rand randn", "*size")
def sized(call: Call) -> None:
    call.result = _fresh_axes(call)


@repairs("zeros ones empty rand randn")
def repair_sized(repair: Repair) -> None:
    repair.resize_all("size", repair.call.result)


@rule("new_zeros new_ones new_empty", "input, *size")
def new_sized(call: Call) -> None:
    call.result = _fresh_axes(call)


@repairs("new_zeros new_ones new_empty")
def repair_new_sized(repair: Repair) -> None:
    repair.resize_all("size", repair.call.result)


@rule("full", "size, fill_value")
def full(call: Call) -> None:
    call.result = _fresh_axes(call)


@rule("new_full", "input, size, fill_value")
def new_full(call: Call) -> None:
    call.result = _fresh_axes(call)


@repairs("full new_full")
def repair_full(repair: Repair) -> None:
    repair.resize_all("size", repair.call.result)


@rule("arange linspace logspace eye randint randperm tensor scalar_tensor hann_window new_tensor", "start")
def numbered(call: Call) -> None:
    call.result = _fresh_axes(call)


@repairs("arange linspace logspace eye randint randperm tensor scalar_tensor hann_window new_tensor")
def repair_numbered(repair: Repair) -> None:
    """Made at full width with the numbers it had, then cut to what is kept."""
    axes = repair.call.result
    if any(repair.shrinks(a) for a in axes):
        repair.select_result(axes)


@rule("as_tensor", "data")
def as_tensor(call: Call) -> None:
    """A tensor as it is, in another type or not; numbers as a new one."""
    call.result = call.tensor("data") if is_tensor(call.arguments["data"]) else _fresh_axes(call)


@repairs("as_tensor")
def repair_as_tensor(repair: Repair) -> None:
    if not is_tensor(repair.call.arguments["data"]):
        repair_numbered(repair)
