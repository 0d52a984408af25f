"""Values to judge a node by: small multiples of powers of two, with which sums of products are exact in float32.

They are cut from one random table of a prime length, so that no two rows of a tensor are alike and nothing is drawn
anew for each layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Patterns", "like"]

_PERIOD = 8191
_STEP = 97


class Patterns:
    """Tables of values in one floating type on one device."""

    def __init__(self, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        self.dtype = dtype
        self.device = device
        generator = torch.Generator().manual_seed(seed)

        def table(low: int, high: int, divisor: int) -> Tensor:
            return (torch.randint(low, high + 1, (_PERIOD,), generator=generator) / divisor).to(device, dtype)

        self._tables = {
            "whole": table(-2, 2, 1),
            "above": table(1, 3, 1),
            "any": table(-16, 16, 8),
            "positive": table(1, 16, 8),
            "share": table(1, 15, 16),
        }

    def parameter(self, tensor: Tensor, salt: int, *, positive: bool) -> Tensor:
        """Whole numbers from -2 to 2, or from 1 to 3, of the shape of ``tensor``; a view that must not be written."""
        return self._cut("above" if positive else "whole", tensor.numel(), salt).view(tensor.shape)

    def activation(self, value: Tensor, salt: int) -> Tensor:
        """Values in place of ``value``, of its shape and strides: as it is from 0 to 1, positive, or of both signs."""
        if value.is_complex():
            parts = [self._cut("any", value.numel(), salt + n).view(value.shape) for n in (0, 7)]
            return like(value, torch.complex(*parts))
        low, high = value.aminmax()
        name = "any" if low < 0 else "share" if high <= 1 else "positive"
        return like(value, self._cut(name, value.numel(), salt).view(value.shape))

    def signed(self, like: Tensor, shape: Sequence[int], salt: int) -> Tensor:
        """Values of both signs of a shape; in memory channels come last where they do so in ``like``."""
        last = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
        values = self._cut("any", math.prod(shape), salt).view(list(shape))
        return values.clone(memory_format=torch.channels_last if last else torch.contiguous_format)

    def _cut(self, name: str, count: int, salt: int) -> Tensor:
        offset = salt * _STEP % _PERIOD
        table = self._tables[name]
        if len(table) < offset + count:
            table = table[:_PERIOD].repeat(-(-(offset + count) // _PERIOD))
            self._tables[name] = table
        return table[offset : offset + count]


def like(value: Tensor, content: Tensor) -> Tensor:
    """A tensor of the strides and type of ``value`` that holds ``content``."""
    return torch.empty_like(value).copy_(content)
