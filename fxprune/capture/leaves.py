"""Walks over arguments and results: as those of pytrees, but quick for tensors and plain containers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree

__all__ = ["holds_tensor", "leaves", "map_leaves"]

_LEAVES = frozenset({torch.Tensor, torch.nn.Parameter, int, float, bool, str, type(None), slice})
_SIMPLE = (torch.Tensor, int, float, torch.dtype, torch.device)


def leaves(value: Any) -> Iterator[Any]:
    """Everything in a value that is no container; None is a leaf."""
    kind = type(value)
    if kind in _LEAVES or isinstance(value, _SIMPLE):
        yield value
    elif kind is tuple or kind is list:
        for item in value:
            yield from leaves(item)
    elif kind is dict:
        for item in value.values():
            yield from leaves(item)
    else:
        yield from pytree.tree_leaves(value)


def holds_tensor(value: Any) -> bool:
    """Whether any leaf is a tensor."""
    return any(isinstance(leaf, torch.Tensor) for leaf in leaves(value))


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """The same structure with every leaf replaced."""
    kind = type(value)
    if kind in _LEAVES or isinstance(value, _SIMPLE):
        return function(value)
    if kind is tuple or kind is list:
        return kind(map_leaves(function, item) for item in value)
    if kind is dict:
        return {key: map_leaves(function, item) for key, item in value.items()}
    return pytree.tree_map(function, value)
