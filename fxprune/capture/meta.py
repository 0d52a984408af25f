"""Stand-ins on the meta device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxprune.capture.numbers import Traced, plain

__all__ = ["META", "meta_like", "on_meta"]

META = torch.device("meta")


def meta_like(tensor: Tensor) -> Tensor:
    """An empty tensor of the same shape, strides and dtype on the meta device."""
    # There empty_like is Python code, ten times slower than empty.
    if tensor.layout is torch.strided and tensor.is_contiguous():
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=META)
    return torch.empty_like(tensor, device=META, requires_grad=False)


def on_meta(value: Any) -> Any:
    """What an argument is for a run on the meta device, where numbers need not remember."""
    if isinstance(value, Traced):
        return value.value
    if isinstance(value, slice):
        return slice(*map(plain, (value.start, value.stop, value.step)))
    if isinstance(value, torch.device):
        return META
    if isinstance(value, torch.Tensor) and value.device != META:
        return meta_like(value)
    return value
