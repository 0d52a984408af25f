"""A consumer's own choice of input channels: the op that dropping a coupling puts in front of it."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from fxprune.rules.call import Call
from fxprune.rules.registry import repairs, rule
from fxprune.rules.repair import Repair

_KEPT_WHOLE = "what reads these channels selects its own of them, so all of them stay"


def select_channels(input: Tensor, gate: Tensor, dim: int) -> Tensor:  # noqa: A002  torch's own name for it
    """At full width: ``input`` times ``gate`` (ones, of shape ``(n,)``) along ``dim``, which changes no value.

    A removed entry of the gate removes the channel for what reads the result, and for nothing else. The rewritten
    network has an ``index_select`` in this place, or nothing where every channel is kept.
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
