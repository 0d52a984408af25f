"""Stand-ins on the meta device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["META", "meta_like"]

META = torch.device("meta")


def meta_like(tensor: Tensor) -> Tensor:
    """An empty tensor of the same shape, strides and dtype on the meta device."""
    # There empty_like is Python code, ten times slower than empty.
    if tensor.layout is torch.strided and tensor.is_contiguous():
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=META)
    return torch.empty_like(tensor, device=META, requires_grad=False)
