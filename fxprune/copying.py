"""Private copies of networks: what runs on one can change nothing of the caller's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from .module_copies import copy_module

__all__ = ["HELD_TENSOR", "MADE_TENSOR", "deep_copy", "tensors_in"]

# Part of the names of tensors that a forward makes while it is traced, from nothing that the model holds.
MADE_TENSOR = "made_tensor"
# The same of tensors that the model holds outside of its state dict.
HELD_TENSOR = "held_tensor"
Module = TypeVar("Module", bound=nn.Module)


def deep_copy(module: Module, fresh: Callable[[Tensor], Tensor]) -> Module:
    """A deep copy over the tensors that ``fresh`` gives for each of the original's; ties stay tied.

    Tensors with a history, which Python's deep copy refuses, are found in the attributes of modules too.

    Raises:
        Exception: whatever the user's own code raises while it is copied.
    """
    memo: dict[int, Any] = {}
    for owner in module.modules():
        for tensor in tensors_in(vars(owner), depth=4):
            if id(tensor) not in memo:
                memo[id(tensor)] = fresh(tensor)
    return cast(Module, copy_module(module, memo))


def tensors_in(value: Any, depth: int) -> Iterator[Tensor]:
    """Tensors in a module's own attributes, through plain containers; submodules are walked by the caller."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item, depth - 1)
    elif depth and isinstance(value, (list, tuple, set)):
        for item in value:
            yield from tensors_in(item, depth - 1)
