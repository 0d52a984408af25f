"""What is known of a node's value in both networks: the narrow one is the full one, cut to what is kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxprune.proof.comparing import Difference, compare
from fxprune.proof.masking import removed_entries, select

__all__ = ["Claim", "Kept", "difference", "is_gone", "is_silent", "lost_entries"]

Kept = tuple[Tensor | None, ...]


@dataclass(eq=False)
class Claim:
    """Values of a node, drawn or computed, for which the claim holds.

    Attributes:
        full: the value in the full network.
        narrow: the value in the narrow one.
        lost: for each dim that loses something, the dim and the indices that go.
        silent: whether the entries that go are zero.
        caused: whether they go because of what goes before, and not by the certificate's word alone.
        buried: the value over what is kept alone, where ``full`` is no single tensor; removed entries are NaN.
    """

    full: Any
    narrow: Any
    lost: tuple[tuple[int, Tensor], ...] = ()
    silent: bool = True
    caused: bool = True
    buried: Callable[[], Any] | None = None

    def over_kept(self) -> Any:
        """The full value with NaN in place of all that goes."""
        if self.buried is not None:
            return self.buried()
        if not self.lost or not isinstance(self.full, Tensor):
            return self.full
        value = self.full.clone()
        if value.is_floating_point() or value.is_complex():
            for dim, index in self.lost:
                value.index_fill_(dim, index, math.nan)
        return value


def lost_entries(tensor: Tensor, kept: Kept) -> tuple[tuple[int, Tensor], ...]:
    """For each dim that loses something, the dim and the indices that go."""
    return tuple(removed_entries(tensor, kept))


def difference(full: Tensor, kept: Kept, narrow: Any) -> Difference:
    """The narrow value beside the kept entries of the full one."""
    if not isinstance(narrow, Tensor):
        return Difference(math.inf, "the value", f"a tensor became {narrow!r}")
    expected = select(full, kept)
    if expected.dtype == narrow.dtype and torch.equal(expected, narrow):
        return Difference()
    return compare({"the value": expected}, {"the value": narrow})


def is_silent(value: Tensor, lost: tuple[tuple[int, Tensor], ...]) -> bool:
    """Whether all entries that go are zero."""
    return all(not bool(value.index_select(dim, index).any()) for dim, index in lost)


def is_gone(value: Tensor, lost: tuple[tuple[int, Tensor], ...]) -> bool:
    """Whether all entries that go are NaN."""
    return all(bool(torch.isnan(value.index_select(dim, index)).all()) for dim, index in lost)
