"""One name for the function, method, operator, in-place and module forms of an op."""

from __future__ import annotations

from typing import Any

_SYNONYMS = {
    "iadd": "add",
    "isub": "sub",
    "imul": "mul",
    "itruediv": "div",
    "idiv": "div",
    "ifloordiv": "floor_divide",
    "floordiv": "floor_divide",
    "imod": "remainder",
    "ipow": "pow",
    "iand": "bitwise_and",
    "ior": "bitwise_or",
    "ixor": "bitwise_xor",
    "truediv": "div",
    "true_divide": "div",
    "divide": "div",
    "multiply": "mul",
    "subtract": "sub",
    "matmul": "matmul",
    "absolute": "abs",
    "concat": "cat",
    "concatenate": "cat",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "moveaxis": "movedim",
    "invert": "bitwise_not",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
    "mod": "remainder",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "not_equal": "ne",
    "linalg_matmul": "matmul",
    "clip": "clamp",
    "T": "t",
    "H": "t",
    "mH": "mT",
    "adjoint": "mT",
}


def canonical_name(target: Any) -> str:
    """The name that rules are keyed by: torch's name without in-place underscore or dunder."""
    name = target if isinstance(target, str) else getattr(target, "__name__", type(target).__name__)
    name = name.strip("_") if name.startswith("__") or not name.startswith("_") else name
    return _SYNONYMS.get(name, name)
