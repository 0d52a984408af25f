"""``int(size)``, ``range(size)``, ``math.sqrt(size)`` and the like, which forget what their numbers were computed from.

While a model is captured, these names in the modules of its source mean variants that remember, or that tell of the
decision. For everything else, other threads included, they do what they always do.
"""

from __future__ import annotations

import functools
import math
import operator
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from fxprune.capture.numbers import Traced, decided, plain, traced

_LOCK = threading.RLock()


class _Variant(type):
    """Makes a class stand for the builtin ``original`` in ``isinstance``, ``issubclass`` and comparisons of types."""

    original: type

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, cls.original)

    def __subclasscheck__(cls, other: type) -> bool:
        return issubclass(other, cls.original)

    def __eq__(cls, other: object) -> bool:
        return other is cls.original or other is cls

    def __hash__(cls) -> int:
        return hash(cls.original)


class _Int(int, metaclass=_Variant):
    """``int`` whose conversions of traced numbers stay traced."""

    original = int
    dtype = np.dtype(int)  # so that numpy takes it for int, too

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        value = int(*map(plain, args), **kwargs)
        return traced(value, int, args) if len(args) == 1 and isinstance(args[0], Traced) else value


class _Float(float, metaclass=_Variant):
    """The same for ``float``."""

    original = float
    dtype = np.dtype(float)

    def __new__(cls, *args: Any) -> Any:
        value = float(*map(plain, args))
        return traced(value, float, args) if args and isinstance(args[0], Traced) else value


class _Range(metaclass=_Variant):
    """``range``; as many turns as a traced number says are a decision."""

    original = range

    def __new__(cls, *args: Any) -> Any:
        for number in args:
            if isinstance(number, Traced):
                decided(operator.eq, (number, plain(number)))
        return range(*map(plain, args))


def _length(value: Any, /) -> int:
    """``len`` whose answer for a tensor is the size of its first dim."""
    if isinstance(value, torch.Tensor) and value.dim() > 0:
        return value.shape[0]
    return len(value)


def _remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of numbers whose results remember them."""

    def variant(*args: Any, **kwargs: Any) -> Any:
        numbers = len(args) > 0 and not kwargs and all(isinstance(a, (int, float)) for a in args)
        if not numbers or not any(isinstance(a, Traced) for a in args):
            return function(*args, **kwargs)
        return traced(function(*map(plain, args)), function, args)

    return variant


_MATHS = {
    name: _remembered(getattr(math, name))
    for name in "ceil cos exp floor gcd isqrt log log10 log2 pow sin sqrt".split()
}


class _Math(types.ModuleType):
    """``math`` whose functions of one number remember it."""

    def __getattr__(self, name: str) -> Any:
        return _MATHS.get(name) or getattr(math, name)


def _product(numbers: Any, *args: Any, **kwargs: Any) -> Any:
    """``numpy.prod`` of sizes."""
    plain_call = not args and not kwargs and isinstance(numbers, (list, tuple))
    if not plain_call or not any(isinstance(n, Traced) for n in numbers):
        return np.prod(numbers, *args, **kwargs)
    return functools.reduce(operator.mul, numbers)


class _Numpy(types.ModuleType):
    """``numpy`` whose functions of one number, and product of sizes, remember them."""

    def __getattr__(self, name: str) -> Any:
        if name == "prod":
            return _product
        function, variant = getattr(np, name), _MATHS.get(name)
        if variant is None:
            return function
        return lambda *args, **kwargs: (
            variant(*args) if any(isinstance(a, Traced) for a in args) else function(*args, **kwargs)
        )


_BUILTINS: dict[str, Any] = {"int": _Int, "float": _Float, "range": _Range, "len": _length}
_BUILTINS |= {"max": _remembered(max), "min": _remembered(min)}
_IMPORTED: dict[str, tuple[Any, Any]] = {"math": (math, _Math("math")), "np": (np, _Numpy("numpy"))}
_IMPORTED |= {"numpy": _IMPORTED["np"]} | {name: (getattr(math, name), variant) for name, variant in _MATHS.items()}
_MISSING = object()


def is_mistaken(error: BaseException) -> bool:
    """Whether C code was given a variant where it wanted the builtin type itself, as in ``dtype=float``."""
    return isinstance(error, TypeError) and f"not {_Variant.__name__}" in str(error)


@contextmanager
def remembering(model: nn.Module, *, types_stay: bool = False) -> Iterator[None]:
    """Put the variants in place in the Python modules that the model's classes, and their neighbours, come from.

    ``types_stay``: leave ``int`` and ``float`` alone.
    """
    changed: list[tuple[dict[str, Any], str, Any]] = []
    with _LOCK:
        try:
            for namespace in namespaces(model):
                for name, variant in _variants(namespace, types_stay):
                    changed.append((namespace, name, namespace.get(name, _MISSING)))
                    namespace[name] = variant
            yield
        finally:
            for namespace, name, original in changed:
                if original is _MISSING:
                    del namespace[name]
                else:
                    namespace[name] = original


def _variants(namespace: dict[str, Any], types_stay: bool) -> Iterator[tuple[str, Any]]:
    for name, variant in _BUILTINS.items():
        if name not in namespace and not (types_stay and variant in (_Int, _Float)):
            yield name, variant
    for name, (original, variant) in _IMPORTED.items():
        if namespace.get(name) is original:
            yield name, variant


def namespaces(model: nn.Module) -> list[dict[str, Any]]:
    packages = {cls.__module__.partition(".")[0] for m in model.modules() for cls in type(m).__mro__}
    packages -= {"torch", "builtins", __name__.partition(".")[0]}
    loaded = [(name, module) for name, module in list(sys.modules.items()) if name.partition(".")[0] in packages]
    return [vars(module) for _, module in loaded if isinstance(module, types.ModuleType)]
