"""Packed sequences: (steps, features) of all of them, one behind the other, and integers that say whose they are."""

from __future__ import annotations

from fxprune.rules.call import Axes, Call, fixed_axes
from fxprune.rules.registry import rule

_STEPS = "it numbers the steps of packed sequences"


def packed_axes(call: Call, data: Axes) -> list[Axes]:
    """The axes of all four parts of a packed sequence with such data."""
    value = call.value if hasattr(call.value, "batch_sizes") else call.value[0]
    return [data, *(fixed_axes(part, _STEPS) for part in value[1:])]


@rule("_pack_padded_sequence", "input, lengths, batch_first=False")
def pack(call: Call) -> None:
    data, batch_sizes = call.value
    axes = call.tensor("input")
    call.result = [(call.fixed(data.shape[0], _STEPS), *axes[2:]), fixed_axes(batch_sizes, _STEPS)]


@rule("_pad_packed_sequence", "data, batch_sizes, batch_first, padding_value, total_length")
def pad(call: Call) -> None:
    padded, lengths = call.value
    sizes = fixed_axes(padded, _STEPS)
    call.result = [(*sizes[:2], *call.tensor("data")[1:]), fixed_axes(lengths, _STEPS)]


@rule("PackedSequence", "data, batch_sizes, sorted_indices=None, unsorted_indices=None")
def packed_sequence(call: Call) -> None:
    call.result = packed_axes(call, call.tensor("data"))
