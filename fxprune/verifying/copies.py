"""Private copies of a network in another floating type."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fxprune.errors import ProofError

__all__ = ["named_tensors", "private_copy", "promoted"]

Module = TypeVar("Module", bound=nn.Module)


def private_copy(module: Module, dtype: torch.dtype) -> Module:
    """A deep copy in eval mode whose floating tensors have type ``dtype``; ties stay tied, the original is only read.

    Raises:
        ProofError: the module cannot be copied.
    """
    memo: dict[int, Any] = {}
    for owner in module.modules():
        for tensor in _tensors(vars(owner), depth=4):
            if id(tensor) not in memo:
                memo[id(tensor)] = _fresh(tensor, dtype)
    try:
        duplicate = copy.deepcopy(module, memo)
    except Exception as error:  # deepcopy runs the user's own code: anything may come out of it
        raise ProofError(
            f"{type(module).__name__} cannot be copied, so nothing can be proven on a copy "
            f"({type(error).__name__}: {error}); pass verify=False to go without the proof"
        ) from error
    return duplicate.eval()


def promoted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous copy without history, in ``dtype`` where ``tensor`` is floating, in the matching complex type where
    it is complex, else in its own type."""
    tensor = tensor.detach()
    if tensor.is_floating_point():
        tensor = tensor.to(dtype)
    elif tensor.is_complex():
        tensor = tensor.to(torch.complex128 if dtype == torch.float64 else torch.complex64)
    return tensor.clone(memory_format=torch.contiguous_format)


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name; a tied tensor appears under each of its names."""
    named: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    named.update(module.named_buffers(remove_duplicate=False))
    return named


def _fresh(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not (tensor.is_floating_point() or tensor.is_complex()) and tensor.layout is not torch.strided:
        return tensor.detach().clone()
    data = promoted(tensor, dtype)
    return nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data


def _tensors(value: Any, depth: int) -> Iterator[Tensor]:
    """Tensors in a module's own attributes, through plain containers; submodules are walked by the caller."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item, depth - 1)
    elif depth and isinstance(value, (list, tuple, set)):
        for item in value:
            yield from _tensors(item, depth - 1)
