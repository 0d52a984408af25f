"""Functions as a torch function mode sees them: which can be entered, which write in place, how a graph writes them."""

from __future__ import annotations

import operator
import types
from collections.abc import Callable
from typing import Any

_REVERSED = {
    "__rsub__": operator.sub,
    "__rdiv__": operator.truediv,
    "__rtruediv__": operator.truediv,
    "__rpow__": operator.pow,
    "__rfloordiv__": operator.floordiv,
    "__rmod__": operator.mod,
    "__rmatmul__": operator.matmul,
}
_OPERATORS = {"add", "sub", "mul", "div", "matmul", "pow", "neg", "remainder"}
_OPERATOR_OF = {"div": operator.truediv, "remainder": operator.mod}
_KEYWORDS = {"__and__": "and_", "__or__": "or_"}
_IN_PLACE = "add and div floordiv lshift matmul mod mul or pow rshift sub truediv xor"
_WRITES = {f"__i{name}__" for name in _IN_PLACE.split()}


def node_form(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, Any, tuple[Any, ...]]:
    """FX op, target and arguments under which an intercepted function is written down."""
    name = getattr(func, "__name__", "")
    if name in _REVERSED:
        return "call_function", _REVERSED[name], args[::-1]
    if name in _OPERATORS and not kwargs and not any(isinstance(a, str) for a in args):
        function = _OPERATOR_OF.get(name) or getattr(operator, name, None)
        if function is not None and _is_method(func):
            return "call_function", function, args
    if _is_method(func):
        if name.startswith("__"):
            return "call_function", getattr(operator, _KEYWORDS.get(name, name.strip("_"))), args
        return "call_method", name, args
    return "call_function", func, args


def mutates(func: Any) -> bool:
    """Whether a function writes to its first argument, by its name."""
    name = getattr(func, "__name__", "")
    return name == "__setitem__" or name in _WRITES or (name.endswith("_") and not name.endswith("__"))


def getter_name(func: Any) -> str:
    """The attribute that an intercepted getter reads."""
    descriptor = func.__self__
    return str(getattr(descriptor, "__name__", None) or getattr(getattr(descriptor, "fget", None), "__name__", ""))


def enterable(func: Any) -> bool:
    """Whether a function is written in Python, so that its parts can be watched instead."""
    return isinstance(func, types.FunctionType) and getattr(func, "__name__", "") not in _REVERSED


def entered(func: types.FunctionType) -> Callable[..., Any]:
    """The same function, answering for itself instead of asking the mode again; what it calls is still watched."""
    namespace = dict(func.__globals__)
    for name in list(namespace):
        if name.startswith("has_torch_function"):
            namespace[name] = _no_torch_function
    twin = types.FunctionType(func.__code__, namespace, func.__name__, func.__defaults__, func.__closure__)
    twin.__kwdefaults__ = func.__kwdefaults__
    return twin


def _no_torch_function(*_: Any) -> bool:
    return False


def _is_method(func: Any) -> bool:
    if isinstance(func, (types.MethodDescriptorType, types.WrapperDescriptorType)):
        return True
    return isinstance(func, types.FunctionType) and func.__qualname__.startswith(("Tensor.", "TensorBase."))
