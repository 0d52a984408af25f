"""Names of ops, one for all of their forms, and names of tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

NamedTensors = list[tuple[str, torch.Tensor]]

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


def names_of(model: nn.Module, prefix: str = "") -> tuple[dict[str, tuple[int, ...]], dict[str, str], set[str]]:
    """Shapes by first name, further names of tied tensors, and the first names of the parameters."""
    return names_among(named_tensors(model, prefix))


def names_among(tensors: NamedTensors) -> tuple[dict[str, tuple[int, ...]], dict[str, str], set[str]]:
    first: dict[int, str] = {}
    aliases = {n: first[id(t)] for n, t in tensors if first.setdefault(id(t), n) != n}
    shapes = {n: tuple(t.shape) for n, t in tensors if n not in aliases}
    return shapes, aliases, {n for n, t in tensors if isinstance(t, nn.Parameter) and n not in aliases}


def named_tensors(model: nn.Module, prefix: str) -> NamedTensors:
    """Parameters by every name that they have, then buffers."""
    modules = list(model.named_modules(prefix=prefix.removesuffix("."), remove_duplicate=False))
    held = (*((path, m._parameters) for path, m in modules), *((path, m._buffers) for path, m in modules))
    return [
        (f"{path}.{name}" if path else name, tensor)
        for path, tensors in held
        for name, tensor in tensors.items()
        if tensor is not None
    ]
