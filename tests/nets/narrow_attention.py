"""What ``nn.MultiheadAttention`` computes, with sizes of its own for heads, query and value widths."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NarrowAttention(nn.Module):
    """Self-attention with the parameter names of ``nn.MultiheadAttention`` and sizes that need not multiply up.

    Args:
        sizes: channels of the input, heads, query and key width of a head, value width of a head, output channels.
        scale: of the query, that of the original width.
        bias: whether the projections have biases.
    """

    def __init__(self, sizes: tuple[int, int, int, int, int], scale: float, bias: bool) -> None:
        super().__init__()
        channels, self.heads, self.width, self.value_width, out = sizes
        self.scale = scale
        rows = self.heads * (2 * self.width + self.value_width)
        self.in_proj_weight = nn.Parameter(torch.empty(rows, channels))
        self.in_proj_bias = nn.Parameter(torch.empty(rows)) if bias else None
        self.out_proj = nn.Linear(self.heads * self.value_width, out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens of shape ``(batch, length, channels)`` to ``(batch, length, out)``."""
        packed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        widths = [self.width, self.width, self.value_width]
        parts = torch.split(packed, [self.heads * width for width in widths], dim=2)
        query, key, value = (torch.unflatten(part, 2, (self.heads, -1)).transpose(1, 2) for part in parts)
        scores = (query * self.scale @ key.transpose(2, 3)).softmax(3)
        # Tokens come first in memory, as torch leaves them in training: what is drawn behind it has that order.
        out: Tensor = self.out_proj((scores @ value).permute(2, 0, 1, 3).flatten(2)).transpose(0, 1)
        return out
