"""Where a model keeps its sizes: whole numbers in attributes of modules, and in what these hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

__all__ = ["Slot", "slots_of"]

# What holds no sizes of a network, or holds much else.
_SKIPPED = (nn.Module, torch.Tensor, type, ModuleType, FunctionType, MethodType, str, bytes, torch.Generator)
_DEPTH = 3


@dataclass(frozen=True)
class Slot:
    """One number: ``table[key]``, or the entry ``index`` of the tuple or list that stands there.

    ``place``: the names that lead to it from the module ``owner``.
    """

    owner: str
    place: tuple[str, ...]
    table: dict[Any, Any]
    key: Any
    index: int | None = None

    @property
    def value(self) -> int:
        """The number that stands there."""
        found = self.table[self.key]
        return int(found if self.index is None else found[self.index])

    @property
    def identity(self) -> tuple[Any, ...]:
        """The same for all slots that are one place in memory."""
        return id(self.table), self.key, self.index

    def set(self, value: int) -> None:
        """Put another number there."""
        if self.index is None:
            self.table[self.key] = value
        else:
            entries = list(self.table[self.key])
            entries[self.index] = value
            self.table[self.key] = type(self.table[self.key])(entries)

    def __str__(self) -> str:
        return ".".join(filter(None, (self.owner, *self.place)))


def slots_of(module: Any, owner: str = "") -> Iterator[Slot]:
    """Every number that a module, or another object, holds by itself; not those of its submodules."""
    yield from _in_table(vars(module), owner, (), _DEPTH, {id(module)})


def _in_table(table: dict[Any, Any], owner: str, place: tuple[str, ...], depth: int, seen: set[int]) -> Iterator[Slot]:
    for key, value in list(table.items()):
        here = (*place, str(key))
        if type(value) is int:
            yield Slot(owner, here, table, key)
        elif type(value) in (tuple, list, torch.Size):
            for index, entry in enumerate(value):
                if type(entry) is int:
                    yield Slot(owner, (*here, str(index)), table, key, index)
        elif depth and id(value) not in seen and not isinstance(value, _SKIPPED):
            inner = value if type(value) is dict else getattr(value, "__dict__", None)
            if isinstance(inner, dict) and not (place == () and str(key).startswith("_")):
                yield from _in_table(inner, owner, here, depth - 1, seen | {id(value)})
