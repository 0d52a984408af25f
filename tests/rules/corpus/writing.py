"""Writing in place: into zeros made in the forward, through slices, steps and lists, and into copies."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.rules.cases import IMAGE, TOKENS, Case, Layout, Op, everywhere, op_case


def _side_by_side(h: Tensor) -> Tensor:
    out = torch.zeros(h.shape[0], 2 * h.shape[1], h.shape[2], h.shape[3], dtype=h.dtype)
    out[:, : h.shape[1]] = h
    out[:, h.shape[1] :] = h.tanh()
    return out


def _interleaved(h: Tensor) -> Tensor:
    out = h.new_zeros(h.shape[0], 16, *h.shape[2:])
    out[:, ::2] = h
    out[:, 1::2] = h.tanh()
    return out


def _part(h: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    out[:, 2:6] = h[:, 2:6] * 3
    return out + h


def _strided_part(h: Tensor) -> Tensor:
    out = h.clone()
    out[:, 1::3, 1:] = h[:, 1::3, 1:] * 3
    return out


def _list(h: Tensor) -> Tensor:
    out = h.clone()
    out[:, [6, 1, 3]] = h[:, [6, 1, 3]] * 3
    return out


def _scalar(h: Tensor) -> Tensor:
    out = h * 1.0
    out[:, 3:] = 0.5
    out[:, :, 0] = 1.5
    return out


def _channel(h: Tensor) -> Tensor:
    out = h * 1.0
    out[:, 2] = h[:, 5] * 2
    return out


def _broadcast(h: Tensor) -> Tensor:
    out = torch.ones_like(h)
    out[:, :4] = h.mean((2, 3), keepdim=True)[:, :4]
    return out * h


def _step_in_place(h: Tensor) -> Tensor:
    h = h * 1.0
    h[:, ::2] *= 2.0
    h[..., 1:] += 1.0
    return h


def _view_in_place(h: Tensor) -> Tensor:
    h = h * 1.0
    h[:, 2:5].mul_(3.0)
    h.narrow(1, 0, 2).add_(1.0)
    left, right = h.chunk(2, 1)
    left.add_(right)
    return h


def _filled(h: Tensor) -> Tensor:
    return h + torch.empty_like(h).fill_(2.0) + h.new_empty(h.shape).zero_()


def _shift(h: Tensor) -> Tensor:
    """Temporal shift: parts of the channels move along the tokens."""
    out = torch.zeros_like(h)
    out[:, :-1, :2] = h[:, 1:, :2]
    out[:, 1:, 2:4] = h[:, :-1, 2:4]
    out[:, :, 4:] = h[:, :, 4:]
    return out


def _masked(h: Tensor) -> Tensor:
    mask = torch.zeros(h.shape[0], h.shape[1], dtype=torch.bool)
    mask[:, -2:] = True
    return h.masked_fill(mask[..., None], 0.0)


def _accumulated(h: Tensor) -> Tensor:
    total = torch.zeros_like(h)
    for i in range(3):
        total += h * i
    return total


def _aliased(h: Tensor) -> Tensor:
    other = h
    F.relu(h, inplace=True)
    return other + h


def _scattered(h: Tensor) -> Tensor:
    index = torch.argsort(h, 1)
    return torch.zeros_like(h).scatter(1, index, h) + torch.zeros_like(h).scatter_add_(1, index, h)


def _index_written(h: Tensor) -> Tensor:
    where = torch.tensor([0, 3, 3])
    out = torch.zeros_like(h).index_add(1, where, h[:, :3]) + h.index_fill(1, torch.tensor([1]), 0.5)
    return out + torch.zeros_like(h).index_copy_(1, torch.tensor([2, 0]), h[:, :2])


class Written(nn.Module):
    """Two layers' channels written side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(14, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x), self.second(x)
        out = x.new_zeros((x.shape[0], 14, x.shape[2], x.shape[3]))
        out[:, :8], out[:, 8:] = a, b
        return self.last(out)


_OPS: dict[str, tuple[Layout, Op]] = {
    "side by side": (IMAGE, _side_by_side),
    "interleaved": (IMAGE, _interleaved),
    "part of the channels": (IMAGE, _part),
    "strided part": (IMAGE, _strided_part),
    "list of channels": (IMAGE, _list),
    "scalar": (IMAGE, _scalar),
    "one channel": (IMAGE, _channel),
    "broadcast": (IMAGE, _broadcast),
    "step in place": (IMAGE, _step_in_place),
    "views in place": (IMAGE, _view_in_place),
    "filled": (IMAGE, _filled),
    "shift": (TOKENS, _shift),
    "mask": (TOKENS, _masked),
    "accumulated": (TOKENS, _accumulated),
    "aliased": (TOKENS, _aliased),
    "scatter over tokens": (TOKENS, _scattered),
    "index_add over tokens": (TOKENS, _index_written),
}

CASES = [
    *(op_case(f"write/{n}", layout, op) for n, (layout, op) in _OPS.items()),
    Case("write/two producers", Written, IMAGE.sample, ("first.weight", "second.weight"), resized=IMAGE.resized),
    *everywhere("write/strided", IMAGE, lambda: _strided_part),
]
