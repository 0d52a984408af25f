"""Sizes that mix what stays as large as the input makes it with channels that go: from full to kept, and back."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

from fxprune.axes.elements import Mask, kept_mask
from fxprune.axes.expressions import Axis, Channels, Concat, Product, has_fixed

__all__ = ["SizeMap", "size_map"]

Emit = Callable[..., Any]


@dataclass(frozen=True)
class SizeMap:
    """``(full - full_offset) / full_factor == (kept - kept_offset) / kept_factor`` at every input size."""

    full_factor: int = 1
    kept_factor: int = 1
    full_offset: int = 0
    kept_offset: int = 0

    def kept(self, full: Any, emit: Emit) -> Any:
        """The kept size, computed by emitted operations from the full one."""
        return _moved(full, self.full_offset, self.full_factor, self.kept_factor, self.kept_offset, emit)

    def full(self, kept: Any, emit: Emit) -> Any:
        """The full size, computed by emitted operations from the kept one."""
        return _moved(kept, self.kept_offset, self.kept_factor, self.full_factor, self.full_offset, emit)

    @property
    def is_linear(self) -> bool:
        """Whether there are no offsets, so that the map holds for products with other sizes, too."""
        return self.full_offset == self.kept_offset == 0


def _moved(value: Any, old_offset: int, old_factor: int, new_factor: int, new_offset: int, emit: Emit) -> Any:
    if old_factor != new_factor:
        value = emit(operator.sub, value, old_offset) if old_offset else value
        common = gcd(old_factor, new_factor)
        value = emit(operator.mul, value, new_factor // common)
        value = emit(operator.floordiv, value, old_factor // common)
        old_offset = 0
    change = new_offset - old_offset
    return emit(operator.add, value, change) if change else value


def size_map(axis: Axis, masks: Mapping[Channels, Mask]) -> SizeMap:
    """The map of a resolved axis that holds input-dependent sizes.

    Where no single number says both sizes, the map is the ratio that the sample has.
    """
    kept = int(kept_mask(axis, masks).sum())
    return _exact(axis, masks) or SizeMap(axis.size, kept)


def _exact(axis: Axis, masks: Mapping[Channels, Mask]) -> SizeMap | None:
    mask = kept_mask(axis, masks)
    if mask.all():
        return SizeMap()
    if not isinstance(axis, (Product, Concat)):
        return None
    parts = axis.factors if isinstance(axis, Product) else axis.parts
    static = [(p.size, int(kept_mask(p, masks).sum())) for p in parts if not has_fixed(p)]
    maps = [_exact(p, masks) for p in parts if has_fixed(p)]
    found = [m for m in maps if m is not None]
    if len(found) < len(maps) or not found:
        return None
    full, kept = zip(*static, strict=True) if static else ((), ())
    if isinstance(axis, Product):
        return _product(found, prod(full), prod(kept))
    return _sum(found, sum(full), sum(kept))


def _product(maps: list[SizeMap], full: int, kept: int) -> SizeMap | None:
    if len(maps) == 1:
        (m,) = maps
        return SizeMap(full * m.full_factor, kept * m.kept_factor, full * m.full_offset, kept * m.kept_offset)
    if not all(m.is_linear for m in maps):
        return None
    return SizeMap(full * prod(m.full_factor for m in maps), kept * prod(m.kept_factor for m in maps))


def _sum(maps: list[SizeMap], full: int, kept: int) -> SizeMap | None:
    first = maps[0]
    if any(m.full_factor * first.kept_factor != m.kept_factor * first.full_factor for m in maps):
        return None
    full_offset, kept_offset = sum(m.full_offset for m in maps), sum(m.kept_offset for m in maps)
    return SizeMap(first.full_factor, first.kept_factor, full + full_offset, kept + kept_offset)
