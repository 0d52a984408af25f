"""Integers and floats that remember which sizes they were computed from.

They are real ``int`` and ``float`` objects, so control flow, indexing, ``range`` and every C++ argument parser accept
them; arithmetic on them is remembered and becomes graph nodes only if the graph uses the result. What a comparison
answers decides which way the forward goes, so whoever watches it is told of the answer.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node

from fxprune.capture.hashing import asked_by_a_cache
from fxprune.capture.sources import is_hidden

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


def decided(function: Callable[..., Any], operands: Operands) -> None:
    """Tell the mode that watches this thread's forward that its way hangs on ``function(*operands)`` being true.

    Nobody watches what torch's own layers and functions ask themselves: they ask it again at every call.
    """
    mode = _watching()
    if mode is not None:
        mode.decided(function, operands)


def _watching() -> Any:
    if torch._C._is_torch_function_enabled():
        for level in range(torch._C._len_torch_function_stack()):
            mode = torch._C._get_function_stack_at(level)
            if hasattr(mode, "decided"):
                return mode
    return None


def graph_of(value: Any) -> Graph | None:
    """The graph that a number's sizes belong to."""
    pending = [value]
    while pending:
        top = pending.pop()
        if isinstance(top, Traced):
            pending.extend(top.operands)
        elif isinstance(top, Node):
            return top.graph
    return None


def plain(value: Any) -> Any:
    """The same number without its origin."""
    if isinstance(value, TracedInt):
        return int.__int__(value)
    return float.__float__(value) if isinstance(value, TracedFloat) else value


def _binary(function: Callable[..., Any], swapped: bool) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, (int, float)) or isinstance(other, bool):
            if isinstance(other, (list, tuple, str)):  # as many copies as the number says
                decided(operator.eq, (self, plain(self)))
            return NotImplemented
        operands = (other, self) if swapped else (self, other)
        return traced(function(*map(plain, operands)), function, operands)

    return method


def _unary(function: Callable[..., Any]) -> Callable[[Any], Any]:
    def method(self: Any) -> Any:
        return traced(function(plain(self)), function, (self,))

    return method


def _comparison(function: Callable[..., Any], inverse: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, (int, float)):
            return NotImplemented
        mode = _watching()
        if mode is None:
            return function(plain(self), plain(other))
        # What a cache of Python's keeps from an earlier trace is equal to nothing, so that it is computed anew.
        if any(isinstance(v, Traced) and graph_of(v) is not mode.graph for v in (self, other)):
            return function is operator.ne
        answer = function(plain(self), plain(other))
        mode.decided(function if answer else inverse, (self, other))
        return answer

    return method


def _truth(self: Any) -> bool:
    answer = bool(plain(self))
    decided(operator.ne if answer else operator.eq, (self, 0))
    return answer


def _as_float(self: Any) -> float:
    """For C code that forgets where the number came from."""
    decided(operator.eq, (self, plain(self)))
    return float(plain(self))


def _hash(self: Any) -> int:
    """For a table or a set, which compares only what has the same hash; for a cache, it decides nothing."""
    frame = sys._getframe(1)
    if _watching() is not None and not is_hidden(frame) and not asked_by_a_cache(frame):
        decided(operator.eq, (self, plain(self)))
    return hash(plain(self))


def _round(self: Any, digits: int | None = None) -> Any:
    operands = (self,) if digits is None else (self, digits)
    return traced(round(*map(plain, operands)), round, operands)


_INVERSES: dict[Callable[..., Any], Callable[..., Any]] = {
    operator.eq: operator.ne,
    operator.ne: operator.eq,
    operator.lt: operator.ge,
    operator.ge: operator.lt,
    operator.gt: operator.le,
    operator.le: operator.gt,
}


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
        for function, inverse in _INVERSES.items():
            setattr(cls, f"__{function.__name__}__", _comparison(function, inverse))
        setattr(cls, "__hash__", _hash)  # noqa: B010
        setattr(cls, "__bool__", _truth)  # noqa: B010
        setattr(cls, "__float__", _as_float)  # noqa: B010
        setattr(cls, "__deepcopy__", lambda self, _: plain(self))  # noqa: B010


_install()
