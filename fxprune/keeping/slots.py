"""The places where a model stores sizes (attributes of modules and of objects in them), and how sizes shrink."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import Mask, kept_mask
from fxprune.axes.expressions import Axis, Channels, Concat, Product

Masks = Mapping[Channels, Mask]
Pairs = set[tuple[int, int]]

# Objects that hold no sizes of a network, or too many other things.
_SKIPPED = (nn.Module, torch.Tensor, type, ModuleType, FunctionType, MethodType, str, bytes, torch.Generator)
_DEPTH = 3


@dataclass(frozen=True)
class Slot:
    """One number: ``table[key]``, or its entry ``index``; ``place``: the names that lead to it from ``owner``."""

    owner: str
    place: tuple[str, ...]
    table: dict[Any, Any]
    key: Any
    index: int | None = None
    optional: bool = False

    @property
    def value(self) -> Any:
        """The number; 0 for a field that is None, which means that the number is computed from others."""
        found = self.table[self.key] if self.index is None else self.table[self.key][self.index]
        return found or 0

    @property
    def identity(self) -> tuple[Any, ...]:
        """A key that is equal for all slots at one place in memory."""
        return id(self.table), self.key, self.index

    def set(self, value: float) -> None:
        """Set the number; for 0, an optional field becomes None again."""
        if self.index is None:
            self.table[self.key] = value or None if self.optional else value
        else:
            entries = list(self.table[self.key])
            entries[self.index] = value
            kind = type(self.table[self.key])
            self.table[self.key] = getattr(kind, "_make", kind)(entries)

    def __str__(self) -> str:
        return ".".join(filter(None, (self.owner, *self.place)))


def slots_of(module: Any, owner: str = "") -> Iterator[Slot]:
    """Every number that a module or another object holds itself; not those of its submodules."""
    yield from _in_table(vars(module), owner, (), _DEPTH, {id(module)})


def factor_slots_of(config: Any) -> Iterator[Slot]:
    """The fields of a configuration that may define a width as a multiple of another."""
    for key, value in vars(config).items():
        if type(value) is float and value > 1:
            yield Slot("", (key,), vars(config), key)


def unset_slots_of(config: Any) -> Iterator[Slot]:
    """The fields of a configuration that are None and may be numbers."""
    for key, value in vars(config).items():
        if value is None and not key.startswith("_"):
            yield Slot("", (key,), vars(config), key, optional=True)


def _in_table(table: dict[Any, Any], owner: str, place: tuple[str, ...], depth: int, seen: set[int]) -> Iterator[Slot]:
    for key, value in list(table.items()):
        here = (*place, str(key))
        if type(value) is int:
            yield Slot(owner, here, table, key)
        elif type(value) in (tuple, list, torch.Size) or (isinstance(value, tuple) and hasattr(value, "_make")):
            for index, entry in enumerate(value):
                if type(entry) is int:
                    yield Slot(owner, (*here, str(index)), table, key, index)
        elif depth and id(value) not in seen and not isinstance(value, _SKIPPED):
            inner = value if type(value) is dict else getattr(value, "__dict__", None)
            if isinstance(inner, dict) and not (place == () and str(key).startswith("_")):
                yield from _in_table(inner, owner, here, depth - 1, seen | {id(value)})


def sizes_of(graph: ChannelGraph, masks: Masks) -> dict[int, set[int]]:
    """Kept sizes by full size, of every dim of a tensor and of products of adjacent factors."""
    found: dict[int, set[int]] = defaultdict(set)
    for axes in graph.tensors.values():
        for old, new in (pair for axis in axes for pair in sizes(axis, masks)):
            found[old].add(new)
    return found


def sizes(axis: Axis, masks: Masks) -> Pairs:
    """Full and kept sizes of a resolved axis, of products of its adjacent factors, and of its parts."""
    found = {(axis.size, int(kept_mask(axis, masks).sum()))}
    parts = axis.factors if isinstance(axis, Product) else axis.parts if isinstance(axis, Concat) else ()
    if isinstance(axis, Product):
        factors = [(factor.size, int(kept_mask(factor, masks).sum())) for factor in axis.factors]
        for start, end in itertools.combinations(range(len(factors) + 1), 2):
            found.add((prod(old for old, _ in factors[start:end]), prod(new for _, new in factors[start:end])))
    return found.union(*(sizes(part, masks) for part in parts))
