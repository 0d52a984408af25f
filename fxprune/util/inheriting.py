"""Whether a module of a derived class runs what its base class would."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import nn

# The mark of a derived class that only watches the calls of its base class.
WATCHES = "__watches__"


def mro(module: nn.Module) -> tuple[type, ...]:
    """The classes of a module, its own first."""
    classes = type(module).__mro__
    return classes[1:] if WATCHES in vars(classes[0]) else classes


def runs_as(module: nn.Module, base: Any) -> bool:
    """Whether a call of a module runs the code that it would run if it were of the class ``base``, one of its bases.

    Not so if an attribute or a class between the two replaces what a call of ``base`` looks up. The mode is left aside.
    """
    return _inherits(mro(module)[0], base) and _methods(base).isdisjoint(vars(module))


@functools.lru_cache(maxsize=4096)
def _looked_up(cls: Any) -> frozenset[str]:
    """The names that a call of a class's modules may look up in them."""
    found: set[str] = set()
    pending = ["__call__", "__getattr__", "__getattribute__"]
    while pending:
        if (name := pending.pop()) not in found:
            found.add(name)
            method = inspect.getattr_static(cls, name, None)
            method = getattr(method, "__func__", method)
            pending += _names(method.__code__) if isinstance(method, FunctionType) else ()
    return frozenset(found - {"training"})


@functools.lru_cache(maxsize=4096)
def _methods(cls: type) -> frozenset[str]:
    return frozenset(name for name in _looked_up(cls) if callable(getattr(cls, name, None)))


@functools.lru_cache(maxsize=4096)
def _inherits(cls: type, base: type) -> bool:
    """Whether no class that comes before ``base`` defines what its calls look up."""
    between = itertools.takewhile(lambda other: other is not base, cls.__mro__)
    return all(_looked_up(base).isdisjoint(vars(other)) for other in between)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _names(value)
