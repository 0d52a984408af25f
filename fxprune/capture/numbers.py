"""Sizes that know where they came from, and numbers computed from them.

They are no ``int`` objects, so C code has to ask for their value, and each such answer is a decision on the size.
``functools.lru_cache`` hashes its arguments and then runs the function on them, or gives what it gave before; a table
that does not hold the size gives its answer without a comparison that could be seen, so its hash is a decision.
"""

from __future__ import annotations

import math
import numbers
import operator
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.fx import Graph, Node

from fxprune.capture.sources import is_hidden, is_in_cached_call, is_of_a_message

Operands = tuple[Any, ...]
# Marks a node that reads a number from a tensor made of sizes: a function of the node, and of one that gives sizes.
OF_SIZES = "of_sizes"


class _Number:
    """A ``value`` that ``function(*operands)`` gave. ``written``: the node that computes it, once there is one."""

    value: Any
    function: Callable[..., Any]
    operands: Operands
    written: Node | None

    def __init__(self, value: Any, function: Callable[..., Any], operands: Operands) -> None:
        self.value, self.function, self.operands, self.written = value, function, operands, None

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.asarray(_as_plain(self), dtype=dtype)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return getattr(ufunc, method)(*map(_as_plain, inputs), **kwargs)

    def __deepcopy__(self, memo: Any) -> Any:
        return self.value if watching() is None else self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(self.value), (_as_plain(self),)

    @property
    def real(self) -> Any:
        return self

    @property
    def imag(self) -> int:
        return 0


class TracedInt(_Number, torch.SymInt):
    """An ``int`` computed by ``function`` of ``operands``."""

    value: int
    __class__ = property(lambda self: int)

    @property
    def numerator(self) -> Any:
        return self

    @property
    def denominator(self) -> int:
        return 1


class TracedFloat(_Number, torch.SymFloat):
    """A ``float`` computed by ``function`` of ``operands``."""

    value: float
    __class__ = property(lambda self: float)


Traced = (TracedInt, TracedFloat)


class _Given:
    """A number as the arguments of torch's C++ functions are. Taking its value is a decision."""

    def __init__(self, number: Any) -> None:
        self._number = number

    def is_int(self) -> bool:
        return isinstance(self._number, TracedInt)

    def is_float(self) -> bool:
        return isinstance(self._number, TracedFloat)

    def is_nested_int(self) -> bool:
        return False

    def guard_int(self, *_: Any) -> Any:
        return _as_plain(self._number)

    guard_float = int_ = maybe_as_int = constant_int = guard_int


def traced(value: Any, function: Callable[..., Any], operands: Operands) -> Any:
    """``value`` with its origin; anything but an int or a float is returned as it is."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return TracedInt(value, function, operands)
    return TracedFloat(value, function, operands) if isinstance(value, float) else value


_NEVER_FAIL = {operator.add, operator.sub, operator.mul, operator.neg, operator.and_, operator.or_, operator.xor}

_DIVIDE = {operator.mod, operator.floordiv, operator.truediv}  # these fail by zero alone


def computed(function: Callable[..., Any], operands: Operands) -> Any:
    """``function`` of numbers, with them as its origin. The forward may branch on whether it fails."""
    mode = watching()
    try:
        value = traced(function(*map(plain, operands)), function, operands)
    except Exception as error:
        if mode is not None:
            mode.failures.failed(error, operands)
        raise
    if mode is not None and function not in _NEVER_FAIL and isinstance(operands[-1], Traced):
        mode.failures.passed(value, operands, divisor=operands[-1] if function in _DIVIDE else None)
    return value


def size_of(node: Node, dim: int, value: int) -> Any:
    """The size of dim ``dim`` of a node's tensor."""
    return TracedInt(value, size_of, (node, dim))


def decided(function: Callable[..., Any], operands: Operands) -> None:
    """Tell the mode that watches this thread's forward that its branch depends on ``function(*operands)`` being true.

    Questions of torch's own layers and functions are not watched: they are asked again at every call. A number that
    only goes into a message decides nothing.
    """
    mode = watching()
    if mode is None:
        return
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals is globals():
        frame = frame.f_back
    if not is_of_a_message(frame):
        mode.decided(function, operands)


def watching() -> Any:
    """The mode that watches what this thread's forward decides, or None."""
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
    return value.value if isinstance(value, Traced) else value


def _as_plain(value: Any) -> Any:
    """The plain number, for code that loses the origin: a decision on the number."""
    if isinstance(value, Traced):
        decided(operator.eq, (value, value.value))
        return value.value
    return value


def _binary(function: Callable[..., Any], swapped: bool) -> Callable[..., Any]:
    def method(self: Any, other: Any, *modulus: Any) -> Any:
        if isinstance(other, np.generic):
            other = other.item()
        if isinstance(other, (int, float)) and not modulus:
            operands = (other, self) if swapped else (self, other)
            return computed(function, operands)
        if not isinstance(other, numbers.Number):
            return NotImplemented
        operands = (other, _as_plain(self)) if swapped else (_as_plain(self), other)
        return pow(*map(_as_plain, (*operands, *modulus))) if modulus else function(*operands)

    return method


def _unary(function: Callable[..., Any]) -> Callable[[Any], Any]:
    def method(self: Any) -> Any:
        return computed(function, (self,))

    return method


def _comparison(function: Callable[..., Any], inverse: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, (int, float, np.generic)):
            return function(_as_plain(self), other) if isinstance(other, numbers.Number) else NotImplemented
        mode = watching()
        # What a cache of Python's keeps from an earlier trace is equal to nothing, so that it is computed anew.
        if any(isinstance(v, Traced) and _is_of_ended_trace(graph_of(v), mode) for v in (self, other)):
            return function is operator.ne
        answer = bool(function(plain(self), plain(other)))
        if mode is not None:
            mode.decided(function if answer else inverse, (self, other))
        return answer

    return method


def _is_of_ended_trace(graph: Graph | None, mode: Any) -> bool:
    """Whether a graph is one of an earlier trace."""
    if mode is not None:
        return graph is not mode.graph
    return graph is not None and any(node.op == "output" for node in reversed(graph.nodes))


def _truth(self: Any) -> bool:
    answer = bool(plain(self))
    decided(operator.ne if answer else operator.eq, (self, 0))
    return answer


def _as_int(self: Any) -> int:
    """For C code that wants an int: the number itself, or the whole part of a float."""
    whole = self if isinstance(self, TracedInt) else traced(int(self.value), int, (self,))
    return int(_as_plain(whole))


def _hash(self: Any) -> int:
    """The hash: a dict or a set compares only keys of equal hash; a cache finds the number by its origin alone."""
    frame = sys._getframe(1)
    if watching() is not None and not is_hidden(frame):
        if is_in_cached_call(frame):
            return hash(_origin(self))  # no number of an earlier call has it
        _as_plain(self)
    return hash(plain(self))


def _origin(value: Any) -> Any:
    return (value.function, *map(_origin, value.operands)) if isinstance(value, Traced) else value


def _round(self: Any, digits: int | None = None) -> Any:
    return computed(round, (self,) if digits is None else (self, digits))


def _plain_method(name: str) -> Callable[..., Any]:
    """A method of plain numbers, whose results have no origin."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(_as_plain(self), name)(*args, **kwargs)

    return method


INVERSES: dict[Callable[..., Any], Callable[..., Any]] = {
    operator.eq: operator.ne,
    operator.ne: operator.eq,
    operator.lt: operator.ge,
    operator.ge: operator.lt,
    operator.gt: operator.le,
    operator.le: operator.gt,
}
_ARITHMETIC = "add sub mul truediv floordiv mod pow".split()
_OF_BITS = "and or xor lshift rshift".split()
_METHODS = "__str__ __repr__ __format__ as_integer_ratio conjugate is_integer".split()
_METHODS_OF = {TracedInt: "__index__ bit_length bit_count to_bytes".split(), TracedFloat: ["hex"]}


def _install() -> None:
    for cls in Traced:
        of_ints = cls is TracedInt
        methods: dict[str, Any] = {name: _plain_method(name) for name in (*_METHODS, *_METHODS_OF[cls])}
        for name in (*_ARITHMETIC, *_OF_BITS):
            function = getattr(operator, name, None) or getattr(operator, f"{name}_")
            usable = of_ints or name in _ARITHMETIC
            methods[f"__{name}__"] = _binary(function, swapped=False) if usable else None
            methods[f"__r{name}__"] = _binary(function, swapped=True) if usable else None
        for name, unary in (("abs", abs), ("ceil", math.ceil), ("floor", math.floor), ("trunc", math.trunc)):
            methods[f"__{name}__"] = _unary(unary)
        methods |= {"__neg__": _unary(operator.neg), "__pos__": lambda self: self}
        methods["__invert__"] = _unary(operator.invert) if of_ints else None
        methods |= {f"__{f.__name__}__": _comparison(f, inverse) for f, inverse in INVERSES.items()}
        methods["__divmod__"] = lambda self, other: (self // other, self % other)
        methods["__rdivmod__"] = lambda self, other: (other // self, other % self)
        methods |= {"__round__": _round, "__hash__": _hash, "__bool__": _truth, "__int__": _as_int}
        methods["__float__"] = lambda self: float(_as_plain(self))
        methods["node"] = property(_Given)  # what torch's C++ code takes numbers from
        for name, method in methods.items():
            setattr(cls, name, method)


_install()
