"""Packed sequences on the meta device: how many steps are left depends on lengths, so every sequence counts in full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

PACK, PAD = "_pack_padded_sequence", "_pad_packed_sequence"


def packed(padded: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """Data (batch * steps, features) and batch sizes (steps) of (batch, steps, features), or steps first."""
    steps = padded.shape[1 if batch_first else 0]
    data = padded.new_empty(padded.shape[0] * padded.shape[1], *padded.shape[2:])
    return data, torch.empty(steps, dtype=torch.int64, device="meta")


def padded(
    data: Tensor, batch_sizes: Tensor, batch_first: bool, padding_value: float, total_length: int
) -> tuple[Tensor, Tensor]:
    """The inverse: (batch, steps, features), or steps first, and lengths (batch)."""
    batch = data.shape[0] // batch_sizes.shape[0]
    sizes = (batch, int(total_length)) if batch_first else (int(total_length), batch)
    return data.new_empty(*sizes, *data.shape[1:]), torch.empty(batch, dtype=torch.int64, device="meta")


def known(name: str, args: Sequence[Any]) -> tuple[Tensor, Tensor] | None:
    """What a function that packs or pads gives, or None for any other."""
    if name == PACK:
        return packed(*args)
    return padded(*args) if name == PAD else None


def batch_of(sequence: PackedSequence) -> int:
    """The number of sequences, each of which counts in full."""
    return int(sequence.data.shape[0] // sequence.batch_sizes.shape[0])


def like(sequence: PackedSequence, data: Tensor) -> PackedSequence:
    """Other data packed in the same way. The class itself refuses what is not on the CPU."""
    about = (None if part is None else torch.empty_like(part) for part in sequence[1:])
    return tuple.__new__(PackedSequence, (data, *about))
