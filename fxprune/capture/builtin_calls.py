"""``int(size)`` and ``len(tensor)``, which Python answers with plain numbers that forget what they were computed from.

While a model is captured, the names ``int`` and ``len`` in the modules of its source mean variants that remember. For
everything else, other threads included, they do what they always do.
"""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from fxprune.capture.numbers import Traced, traced

_LOCK = threading.RLock()


class _IntType(type):
    """Makes :class:`_Int` stand for ``int`` in ``isinstance``, ``issubclass`` and comparisons of types."""

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, int)

    def __subclasscheck__(cls, other: type) -> bool:
        return issubclass(other, int)

    def __eq__(cls, other: object) -> bool:
        return other is int or other is cls

    def __hash__(cls) -> int:
        return hash(int)


class _Int(int, metaclass=_IntType):
    """``int`` whose conversions of traced numbers stay traced."""

    dtype = np.dtype(int)  # so that numpy takes it for int, too

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        value = int(*args, **kwargs)
        if len(args) == 1 and isinstance(args[0], Traced):
            return traced(value, int, args)
        return value


def _length(value: Any, /) -> int:
    """``len`` whose answer for a tensor is the size of its first dim."""
    if isinstance(value, torch.Tensor) and value.dim() > 0:
        return value.shape[0]
    return len(value)


@contextmanager
def remembering(model: nn.Module) -> Iterator[None]:
    """Put the variants in place in the Python modules that the model's classes, and their neighbours, come from."""
    names = {"int": _Int, "len": _length}
    changed: list[tuple[dict[str, Any], str]] = []
    with _LOCK:
        try:
            for namespace in namespaces(model):
                for name, variant in names.items():
                    if name not in namespace:
                        namespace[name] = variant
                        changed.append((namespace, name))
            yield
        finally:
            for namespace, name in changed:
                del namespace[name]


def namespaces(model: nn.Module) -> list[dict[str, Any]]:
    packages = {cls.__module__.partition(".")[0] for m in model.modules() for cls in type(m).__mro__}
    packages -= {"torch", "builtins", __name__.partition(".")[0]}
    loaded = [(name, module) for name, module in list(sys.modules.items()) if name.partition(".")[0] in packages]
    return [vars(module) for _, module in loaded if isinstance(module, types.ModuleType)]
