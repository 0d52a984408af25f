"""Uses of ops that the other families leave out: sizes that broadcast, turns, arguments that are computed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import ops

from tests.rules.cases import IMAGE, TOKENS, VECTOR, Layout, Op, module_case, op_case
from tests.rules.corpus.pinned import through


class OwnOffsets(nn.Module):
    """A deformable convolution whose two halves of channels have offsets of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = ops.DeformConv2d(8, 6, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return self.layer(h, h.new_full((h.shape[0], 36, *h.shape[2:]), 0.3))


class Columns(nn.Module):
    """Two vectors of parameters side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))

    def forward(self, h: Tensor) -> Tensor:
        return h * torch.column_stack((self.left, self.right)).prod(1)


class OneBias(nn.Module):
    """A linear layer with one bias for all of its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(1))

    def forward(self, h: Tensor) -> Tensor:
        return F.linear(h, self.weight, self.bias)


def _masked(h: Tensor) -> Tensor:
    h = h * 1.0
    h[h > 0.5] = 0.0
    return h


def _written_at_steps(h: Tensor) -> Tensor:
    h = h * 1.0
    h[:, ::3, ::2] = 0.5
    return h


_FREE: dict[str, tuple[Layout, Op]] = {
    "masked by its values": (VECTOR, _masked),
    "half turn": (TOKENS, lambda h: torch.rot90(h, 2, (1, 2))),
    "three quarters": (IMAGE, lambda h: torch.rot90(h, 3, (2, 3))),
    "whole turn": (TOKENS, lambda h: torch.rot90(h, 4, (1, 2))),
    "einsum of a size of one": (IMAGE, lambda h: torch.einsum("bchw,bchw->bchw", h, h.mean((2, 3), keepdim=True))),
    "scalar raised": (VECTOR, lambda h: h * torch.atleast_1d(torch.tensor(2.0, dtype=h.dtype))),
    "view of a type": (VECTOR, lambda h: h.view(h.dtype)),
    "view of a computed size": (VECTOR, lambda h: h.view(h.tanh().size())),
    "nothing reshaped": (VECTOR, lambda h: torch.cat((h, h[:, :0].reshape(h.shape[0], 0)), 1)),
}
_PINNED: dict[str, tuple[Layout, Op]] = {
    "written at steps": (IMAGE, _written_at_steps),
    "gather of fewer": (TOKENS, lambda h: h.gather(1, torch.zeros(h.shape[0], 2, 5, dtype=torch.long))),
    "taken flat": (VECTOR, lambda h: h + torch.take_along_dim(h, torch.tensor([0, 3]))[0]),
}
CASES = [
    *(op_case(f"corner/{name}", layout, op) for name, (layout, op) in _FREE.items()),
    *(through(f"corner/{name}", layout, lambda op=op: op) for name, (layout, op) in _PINNED.items()),
    module_case(
        "corner/offsets of their own", IMAGE, OwnOffsets, free=("middle.layer.weight",), pinned=("first.weight",)
    ),
    op_case("corner/four shuffled to twice two pixels", IMAGE, lambda h: F.pixel_shuffle(h, 2), 16),
    module_case("corner/columns of parameters", VECTOR, Columns),
    module_case("corner/one bias", VECTOR, OneBias, free=("first.weight", "middle.weight")),
]
