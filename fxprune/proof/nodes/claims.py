"""Claims about a node's value in both networks: the narrow value consists of the kept entries of the full one."""

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
    """The claim of one node, with values for which it holds: computed, or drawn at random when first needed.

    Attributes:
        shape: of the full value; None if that is not a single tensor.
        kept: for each dim the kept indices, None for all.
        domain: the range of the values: "any", "positive" or "share"; "" if they are not floats, or not drawn.
        silent: whether the removed entries are zero.
        caused: whether their removal follows from removals before them, not from the certificate alone.
        like: one entry of the type and on the device of the values.
        is_lossy: whether any entry is removed.
        pieces: the claims of its tensors, if there are several and a law covers them.
        with_nan: the value with NaN in removed entries, if ``full`` is not a single tensor.
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
        with_nan: Callable[[], Any] | None = None,
        like: Tensor | None = None,
        pieces: Sequence[Claim] = (),
    ) -> None:
        """``values``: the full and the narrow value, or a function from this claim to both, which needs ``shape``."""
        self._values, self.pieces = values, pieces
        self.kept, self.domain = kept, domain
        self.silent, self.caused, self.with_nan, self.like = silent, caused, with_nan, like
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
        """The values, or tensors of their sizes and type if they are not drawn yet."""
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
        """The value in the narrow network."""
        return self.values()[1]

    @property
    def is_float(self) -> bool:
        """Whether the value is a floating tensor."""
        if self.domain or self.shape is None:
            return bool(self.domain)
        return bool(self.full.is_floating_point())

    @property
    def is_drawn(self) -> bool:
        """Whether the values are drawn, so that the narrow one was cut from the full one."""
        return bool(self.domain)

    @classmethod
    def of_pieces(cls, pieces: Sequence[Claim], *, caused: bool) -> Claim:
        """The claim of a tuple of tensors."""

        def values(claim: Claim) -> tuple[Any, Any]:
            return tuple(piece.full for piece in pieces), tuple(piece.narrow for piece in pieces)

        def with_nan() -> Any:
            return tuple(piece.over_kept() for piece in pieces)

        lossy = any(piece.is_lossy for piece in pieces)
        return cls(values, caused=caused, with_nan=with_nan if lossy else None, pieces=pieces)

    @property
    def is_whole(self) -> bool:
        """Whether no entry is removed."""
        return self.with_nan is None and not any(kept is not None for kept in self.kept)

    @cached_property
    def lost(self) -> tuple[tuple[int, Tensor], ...]:
        """For each dim with removed entries, the dim and the removed indices."""
        return lost_entries(self.full, self.kept) if self.is_lossy else ()

    def over_kept(self) -> Any:
        """The full value with NaN in place of its removed entries."""
        if self.with_nan is not None:
            return self.with_nan()
        if not self.is_lossy:
            return self.full
        value = self.full.clone()
        if value.is_floating_point() or value.is_complex():
            for dim, index in self.lost:
                value.index_fill_(dim, index, math.nan)
        return value


def at(kept: Kept, dim: int) -> Tensor | None:
    """The kept indices of a dim; None for all."""
    return kept[dim] if dim < len(kept) else None


def every(kept: Tensor | None, size: int) -> Tensor:
    """The kept indices of a dim, written out."""
    return torch.arange(size) if kept is None else kept.cpu()


def same_kept(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two dims keep the same entries in the same order."""
    if one is None or other is None:
        return one is other
    return one is other or torch.equal(one.cpu(), other.cpu())


def cut_shape(shape: Sequence[int], kept: Kept) -> tuple[int, ...]:
    """The shape of a tensor's kept entries."""
    return tuple(size if (index := at(kept, dim)) is None else len(index) for dim, size in enumerate(shape))


def lost_entries(tensor: Tensor, kept: Kept) -> tuple[tuple[int, Tensor], ...]:
    """For each dim with removed entries, the dim and the removed indices."""
    return tuple(removed_entries(tensor, kept))


def difference(full: Tensor, kept: Kept, narrow: Any) -> Difference:
    """The difference between the narrow value and the kept entries of the full one."""
    if not isinstance(narrow, Tensor):
        return Difference(math.inf, "the value", f"a tensor became {narrow!r}")
    expected = select(full, kept)
    if expected.dtype == narrow.dtype and torch.equal(expected, narrow):
        return Difference()
    return compare({"the value": expected}, {"the value": narrow})


def is_silent(value: Tensor, lost: tuple[tuple[int, Tensor], ...]) -> bool:
    """Whether all removed entries are zero."""
    return all(not bool(value.index_select(dim, index).any()) for dim, index in lost)


def is_gone(value: Tensor, lost: tuple[tuple[int, Tensor], ...]) -> bool:
    """Whether all removed entries are NaN."""
    return all(bool(torch.isnan(value.index_select(dim, index)).all()) for dim, index in lost)
