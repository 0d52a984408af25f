"""Integers and floats that remember which sizes they were computed from.

They are real ``int`` and ``float`` objects, so control flow, indexing, ``range`` and every C++ argument parser accept
them; arithmetic on them is remembered and becomes graph nodes only if the graph uses the result.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from torch.fx import Node

Operands = tuple[Any, ...]


class TracedInt(int):
    """An ``int`` computed by ``function`` of ``operands``."""

    function: Callable[..., Any]
    operands: Operands
    node: Node | None


class TracedFloat(float):
    """A ``float`` computed by ``function`` of ``operands``."""

    function: Callable[..., Any]
    operands: Operands
    node: Node | None


Traced = (TracedInt, TracedFloat)


def traced(value: Any, function: Callable[..., Any], operands: Operands) -> Any:
    """``value`` remembering its origin; what is neither int nor float is given back as it is."""
    number: TracedInt | TracedFloat
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        number = TracedInt(value)
    elif isinstance(value, float):
        number = TracedFloat(value)
    else:
        return value
    number.function, number.operands, number.node = function, operands, None
    return number


def size_of(node: Node, dim: int, value: int) -> TracedInt:
    """The size of dim ``dim`` of a node's tensor."""
    number = traced(value, size_of, (node, dim))
    assert isinstance(number, TracedInt)
    return number


def _plain(value: Any) -> Any:
    if isinstance(value, TracedInt):
        return int.__int__(value)
    return float.__float__(value) if isinstance(value, TracedFloat) else value


def _binary(function: Callable[..., Any], swapped: bool) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, (int, float)) or isinstance(other, bool):
            return NotImplemented
        operands = (other, self) if swapped else (self, other)
        return traced(function(*map(_plain, operands)), function, operands)

    return method


def _unary(function: Callable[..., Any]) -> Callable[[Any], Any]:
    def method(self: Any) -> Any:
        return traced(function(_plain(self)), function, (self,))

    return method


def _round(self: Any, digits: int | None = None) -> Any:
    operands = (self,) if digits is None else (self, digits)
    return traced(round(*map(_plain, operands)), round, operands)


def _install() -> None:
    names = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
    for cls in Traced:
        for name in names:
            setattr(cls, f"__{name}__", _binary(getattr(operator, name), swapped=False))
            setattr(cls, f"__r{name}__", _binary(getattr(operator, name), swapped=True))
        setattr(cls, "__neg__", _unary(operator.neg))  # noqa: B010  assigned in a loop over names and classes
        for name, function in (("abs", abs), ("ceil", math.ceil), ("floor", math.floor)):
            setattr(cls, f"__{name}__", _unary(function))
        setattr(cls, "__round__", _round)  # noqa: B010
        setattr(cls, "__divmod__", lambda self, other: (self // other, self % other))  # noqa: B010
        setattr(cls, "__rdivmod__", lambda self, other: (other // self, other % self))  # noqa: B010
        setattr(cls, "__deepcopy__", lambda self, _: _plain(self))  # noqa: B010


_install()
