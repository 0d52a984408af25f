"""One name for the function, method, operator, in-place and module forms of an op."""

from __future__ import annotations

from typing import Any

from torch import fx

_IN_PLACE = frozenset("setitem iadd isub imul itruediv ifloordiv imod ipow iand ior ixor".split())
_SYNONYMS = {
    "iadd": "add",
    "isub": "sub",
    "imul": "mul",
    "itruediv": "div",
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
    "less": "lt",
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


def writes_in_place(node: fx.Node) -> bool:
    """Whether an op writes to its first argument or to one that is passed for it."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))
    return in_place or "out" in node.kwargs or node.kwargs.get("inplace") is True
