"""expand, repeat, repeat_interleave and tile, of dims of size one and of wider ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.rules.cases import IMAGE, TOKENS, VECTOR, Case, Layout, Op, op_case


class Token(nn.Module):
    """A class token and a position table, expanded over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 4)
        self.token, self.table = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        token = self.token.expand(x.shape[0], -1, -1)
        return self.last(torch.cat((token, self.first(x)), dim=1) + self.table)


class RepeatedToken(Token):
    """The token repeated instead."""

    def forward(self, x: Tensor) -> Tensor:
        token = self.token.repeat(x.size(0), 1, 1)
        return self.last(torch.cat([token, self.first(x)], 1) + self.table.tile(x.shape[0], 1, 1))


class Broadcast(nn.Module):
    """A width made by expanding a dim of size one, met by a real one."""

    def __init__(self, widen: Op) -> None:
        super().__init__()
        self.widen = widen
        self.gate, self.first, self.last = nn.Conv2d(3, 1, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.widen(self.gate(x)) * self.first(x))


_WIDENED: dict[str, Op] = {
    "expand": lambda g: g.expand(-1, 8, -1, -1),
    "expand of sizes": lambda g: g.expand(g.shape[0], 8, g.shape[2], g.shape[3]),
    "expand of a tuple": lambda g: g.expand((g.shape[0], 8, *g.shape[2:])),
    "broadcast_to": lambda g: torch.broadcast_to(g, (g.shape[0], 8, *g.shape[2:])),
    "repeat": lambda g: g.repeat(1, 8, 1, 1),
    "repeat of a tuple": lambda g: g.repeat((1, 8, 1, 1)),
    "tile": lambda g: torch.tile(g, (8, 1, 1)),
    "repeat_interleave": lambda g: g.repeat_interleave(8, dim=1),
}
_REPEATED: dict[str, tuple[Layout, Op]] = {
    "repeat of channels": (IMAGE, lambda h: h.repeat(1, 3, 1, 1)),
    "repeat of batch": (VECTOR, lambda h: h.repeat(2, 1)[: h.shape[0]]),
    "repeat with a new dim": (VECTOR, lambda h: h.repeat(3, 1, 1).mean(0)),
    "tile of channels": (VECTOR, lambda h: h.tile(2)),
    "repeat_interleave of channels": (IMAGE, lambda h: torch.repeat_interleave(h, 2, dim=1)),
    "repeat_interleave to a size": (IMAGE, lambda h: h.repeat_interleave(2, dim=1, output_size=16)),
    "repeat_interleave of space": (IMAGE, lambda h: h.repeat_interleave(2, -1).repeat_interleave(2, dim=2)),
    "expand of a new dim": (VECTOR, lambda h: h.unsqueeze(1).expand(-1, 3, -1).flatten(1)),
    "expand of a last dim": (VECTOR, lambda h: h.unsqueeze(-1).expand(-1, -1, 3).flatten(1)),
    "expand to heads": (TOKENS, lambda h: h[:, :, None, :].expand(-1, -1, 2, -1).flatten(2)),
    "expand_as": (IMAGE, lambda h: h.mean((2, 3), keepdim=True).expand_as(h) + h),
    "expand of size": (IMAGE, lambda h: h.mean((2, 3), keepdim=True).expand(h.size()) + h),
    "broadcast_tensors": (IMAGE, lambda h: torch.broadcast_tensors(h, h.mean((2, 3), keepdim=True))[1] + h),
    "stacked and flattened": (VECTOR, lambda h: torch.stack((h, h.tanh()), 2).flatten(1)),
    "meshgrid": (
        IMAGE,
        lambda h: h + torch.meshgrid(torch.arange(h.shape[2]), torch.arange(h.shape[3]), indexing="ij")[0],
    ),
}

CASES = [
    *(op_case(f"repeat/{n}", layout, op) for n, (layout, op) in _REPEATED.items()),
    *(
        Case(f"repeat/one channel by {n}", lambda op=op: Broadcast(op), IMAGE.sample, resized=IMAGE.resized)
        for n, op in _WIDENED.items()
    ),
    Case("repeat/class token", Token, TOKENS.sample, ("first.weight", "token:2", "table:2")),
    Case("repeat/repeated class token", RepeatedToken, TOKENS.sample, ("first.weight", "token:2", "table:2")),
]
