"""Questions and counts over booleans and integers, whose removed entries are kept beside them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from fxprune.proof.nan_carrying.calls import Call
from fxprune.proof.nan_carrying.pointwise import Shadows
from fxprune.proof.nan_carrying.reductions import all_gone

# What stands for a removed entry, so that it does not change the answer.
_FILLS = {"all": 1, "any": 0, "count_nonzero": 0, "sum": 0, "prod": 1}
_OF_ANY_TYPE = ("all", "any", "count_nonzero")


@functools.cache
def _fill(func: torch._ops.OpOverload) -> tuple[int | None, bool]:
    """The stand-in, None for other operators, and whether it serves floats too."""
    name = func._schema.name.removeprefix("aten::")
    if any(argument.is_out for argument in func._schema.arguments):
        return None, False
    return _FILLS.get(name), name in _OF_ANY_TYPE


def is_counting(func: torch._ops.OpOverload, args: tuple[Any, ...]) -> bool:
    """Whether the operator answers a question about, or counts, all entries of its first argument."""
    fill, floats = _fill(func)
    return fill is not None and (floats or (not args[0].is_floating_point() and not args[0].is_complex()))


def counted(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], shadows: Shadows) -> Any:
    """Run such an operator over the entries that are left."""
    x = args[0]
    removed = shadows.of(x)
    if removed is None:
        return func(*args, **kwargs)
    removed = removed.expand(x.shape)
    call = Call(func, (x.masked_fill(removed, _fill(func)[0] or 0), *args[1:]), kwargs)
    result: Tensor = call.run()
    shadows.put(result, all_gone(call, removed))
    return result
