"""What is known of a node's value in both networks: the narrow one is the full one, cut to what is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fxprune.proof.comparing import Difference, compare
from fxprune.proof.masking import removed_entries, select

Kept = tuple[Tensor | None, ...]


class Claim:
    """Values of a node, drawn or computed, for which the claim holds; drawn only when they are asked for.

    Attributes:
        shape: of the full value; None where that is no single tensor.
        kept: the kept indices of every dim, None for all.
        domain: where the values are: "any", "positive" or "share"; "" where they are no floats, or not drawn.
        silent: whether the entries that go are zero.
        caused: whether they go because of what goes before, and not by the certificate's word alone.
        like: one entry in the type and on the device of the values.
        is_lossy: whether any entry goes.
        pieces: the claims of its tensors, where there are several and a law tells of them.
        buried: the value over what is kept alone, where ``full`` is no single tensor; removed entries are NaN.
    """

    def __init__(
        self,
        values: tuple[Any, Any] | Callable[[Claim], tuple[Any, Any]],
        kept: Kept = (),
        *,
        shape: Sequence[int] | None = None,
        domain: str = "",
        silent: bool = True,
        caused: bool = True,
        buried: Callable[[], Any] | None = None,
        like: Tensor | None = None,
        pieces: Sequence[Claim] = (),
    ) -> None:
        """``values``: the full and the narrow value, or what gives them for this claim, which then needs a shape."""
        self._values, self.pieces = values, pieces
        self.kept, self.domain = kept, domain
        self.silent, self.caused, self.buried, self.like = silent, caused, buried, like
        if shape is None and not callable(values) and isinstance(values[0], Tensor):
            shape = values[0].shape
        self.shape = None if shape is None else tuple(shape)
        self.is_lossy = shape is not None and any(k is not None and len(k) < shape[d] for d, k in enumerate(kept))

    def values(self) -> tuple[Any, Any]:
        """The full and the narrow value."""
        if callable(self._values):
            self._values = self._values(self)
        return self._values

    def changed(self, values: tuple[Any, Any], domain: str = "") -> Claim:
        """The same claim over other values."""
        return Claim(values, self.kept, domain=domain, silent=self.silent, caused=self.caused)

    def sized(self) -> tuple[Any, Any]:
        """The values, or tensors of their sizes and type where there are none yet."""
        if not callable(self._values) or self.like is None:
            return self.values()
        assert self.shape is not None
        return self.like.expand(self.shape), self.like.expand(cut_shape(self.shape, self.kept))

    @property
    def full(self) -> Any:
        """The value in the full network."""
        return self.values()[0]

    @property
    def narrow(self) -> Any:
        """The value in the narrow one."""
        return self.values()[1]

    @property
    def is_float(self) -> bool:
        """Whether it is a tensor of floating numbers."""
        if self.domain or self.shape is None:
            return bool(self.domain)
        return bool(self.full.is_floating_point())

    @property
    def is_drawn(self) -> bool:
        """Whether the narrow value was made of the full one."""
        return bool(self.domain)

    @classmethod
    def of_pieces(cls, pieces: Sequence[Claim], *, caused: bool) -> Claim:
        """A claim of several tensors."""

        def values(claim: Claim) -> tuple[Any, Any]:
            return tuple(piece.full for piece in pieces), tuple(piece.narrow for piece in pieces)

        def buried() -> Any:
            return tuple(piece.over_kept() for piece in pieces)

        lossy = any(piece.is_lossy for piece in pieces)
        return cls(values, caused=caused, buried=buried if lossy else None, pieces=pieces)

    @property
    def is_whole(self) -> bool:
        """Whether both values are the same."""
        return self.buried is None and not any(kept is not None for kept in self.kept)

    @cached_property
    def lost(self) -> tuple[tuple[int, Tensor], ...]:
        """For each dim that loses something, the dim and the indices that go."""
        return lost_entries(self.full, self.kept) if self.is_lossy else ()

    def over_kept(self) -> Any:
        """The full value with NaN in place of all that goes."""
        if self.buried is not None:
            return self.buried()
        if not self.is_lossy:
            return self.full
        value = self.full.clone()
        if value.is_floating_point() or value.is_complex():
            for dim, index in self.lost:
                value.index_fill_(dim, index, math.nan)
        return value


def at(kept: Kept, dim: int) -> Tensor | None:
    """What a dim keeps; None for all."""
    return kept[dim] if dim < len(kept) else None


def every(kept: Tensor | None, size: int) -> Tensor:
    """The indices that a dim keeps."""
    return torch.arange(size) if kept is None else kept.cpu()


def same_kept(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two dims keep the same entries in the same order."""
    if one is None or other is None:
        return one is other
    return one is other or torch.equal(one.cpu(), other.cpu())


def cut_shape(shape: Sequence[int], kept: Kept) -> tuple[int, ...]:
    """The shape of what is kept of a tensor."""
    return tuple(size if (index := at(kept, dim)) is None else len(index) for dim, size in enumerate(shape))


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
