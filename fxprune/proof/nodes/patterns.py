"""Values to judge a node by: small multiples of powers of two, with which sums of products are exact in float32.

They are cut from one random table of a prime length, so that no two rows of a tensor are alike and nothing is drawn
anew for each layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_PERIOD = 8191
_STEP = 97


class Patterns:
    """Tables of values in one floating type on one device."""

    def __init__(self, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        self.dtype = dtype
        self.device = device
        self.one = torch.ones((), dtype=dtype, device=device)
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
        """Values in place of ``value``, of its shape, strides and domain."""
        if value.is_complex():
            parts = [self._cut("any", value.numel(), salt + n).view(value.shape) for n in (0, 7)]
            return like(value, torch.complex(*parts))
        return like(value, self.drawn(domain_of(value), value.shape, salt))

    def drawn(self, domain: str, shape: Sequence[int], salt: int) -> Tensor:
        """Values of a domain in a shape; a view that must not be written."""
        return self._cut(domain, math.prod(shape), salt).view(list(shape))

    def _cut(self, name: str, count: int, salt: int) -> Tensor:
        offset = salt * _STEP % _PERIOD
        table = self._tables[name]
        if len(table) < offset + count:
            table = table[:_PERIOD].repeat(-(-(offset + count) // _PERIOD))
            self._tables[name] = table
        return table[offset : offset + count]


def domain_of(value: Tensor) -> str:
    """Where values are: as "share" from 0 to 1, "positive", or of both signs."""
    low, high = (bound.item() for bound in value.aminmax())
    return "any" if low < 0 else "share" if high <= 1 else "positive"


def like(value: Tensor, content: Tensor) -> Tensor:
    """A tensor of the strides and type of ``value`` that holds ``content``."""
    return torch.empty_like(value).copy_(content)
