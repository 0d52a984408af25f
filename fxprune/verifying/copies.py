"""Private copies of a network in another floating type."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from fxprune.copying import MADE_TENSOR, deep_copy
from fxprune.errors import ProofError

__all__ = ["named_tensors", "private_copy", "promoted"]

Module = TypeVar("Module", bound=nn.Module)


def private_copy(module: Module, dtype: torch.dtype) -> Module:
    """A deep copy in eval mode whose floating tensors have type ``dtype``; ties stay tied, the original is only read.

    Constants that a trace made keep their type, for the original computes with them in that type at every call; but not
    those of one repeated number, which are made in ``dtype`` there, as they are exact in every type.

    Raises:
        ProofError: the module cannot be copied.
    """
    made = {id(t) for name, t in module.named_buffers() if f"_{MADE_TENSOR}" in name and not _is_filled(t)}
    try:
        duplicate = deep_copy(module, lambda t: _fresh(t, t.dtype if id(t) in made else dtype))
    except Exception as error:  # deepcopy runs the user's own code: anything may come out of it
        raise ProofError(
            f"{type(module).__name__} cannot be copied, so nothing can be proven on a copy "
            f"({type(error).__name__}: {error}); pass verify=False to go without the proof"
        ) from error
    return duplicate.eval()


def promoted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy without history, laid out as ``tensor`` is, in ``dtype`` where that is floating, in the matching complex
    type where it is complex, else in its own type."""
    tensor = tensor.detach()
    if tensor.is_complex() and not dtype.is_complex:
        dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
    elif not tensor.is_floating_point():
        dtype = tensor.dtype
    return tensor.to(dtype, copy=True, memory_format=torch.preserve_format)


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name; a tied tensor appears under each of its names."""
    named: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    named.update(module.named_buffers(remove_duplicate=False))
    return named


def _is_filled(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and bool((tensor == tensor.flatten()[0]).all())


def _fresh(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not (tensor.is_floating_point() or tensor.is_complex()) and tensor.layout is not torch.strided:
        return tensor.detach().clone()
    data = promoted(tensor, dtype)
    return nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data
