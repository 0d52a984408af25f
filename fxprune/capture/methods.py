"""Which parts of an opaque module may be replaced by a graph: those that the code around them only calls.

A graph has no methods. Where the enclosing code may ask a part for one, such as the losses of a detector's head, that
part keeps its class, and what lies inside it is looked at in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import nn

__all__ = ["is_only_called", "names_used"]


def names_used(module: nn.Module) -> frozenset[str]:
    """Every name and every string in the code of a module's own class and its bases, nn.Module's left out."""
    found: set[str] = set()
    for cls in _own_classes(module):
        for value in vars(cls).values():
            for function in _functions(value):
                found.update(_names(function.__code__))
    return frozenset(found)


def is_only_called(part: nn.Module, names: frozenset[str]) -> bool:
    """Whether no submodule of ``part``, itself included, has a method or property that ``names`` holds."""
    return not any(method in names for module in part.modules() for method in _methods(module))


def _methods(module: nn.Module) -> Iterator[str]:
    for cls in _own_classes(module):
        for name, value in vars(cls).items():
            if name != "forward" and not name.startswith("__") and any(True for _ in _functions(value)):
                yield name


def _own_classes(module: nn.Module) -> Iterator[type]:
    for cls in type(module).__mro__:
        if issubclass(cls, nn.Module) and not cls.__module__.startswith("torch.nn."):
            yield cls


def _functions(value: Any) -> Iterator[FunctionType]:
    wrapped: tuple[Callable[..., Any] | None, ...] = (value,)
    if isinstance(value, property):
        wrapped = (value.fget, value.fset)
    elif isinstance(value, (staticmethod, classmethod)):
        wrapped = (value.__func__,)
    return (function for function in wrapped if isinstance(function, FunctionType))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
        elif isinstance(constant, str):
            yield constant
