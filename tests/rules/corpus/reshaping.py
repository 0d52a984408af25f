"""Views, reshapes, flattening and every way to move dims, with literal, dynamic and inferred sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.rules.cases import IMAGE, TOKENS, VECTOR, Case, Layout, Op, everywhere, module_case, op_case


def _shuffled(h: Tensor, groups: int = 2) -> Tensor:
    """A channel shuffle by view, transpose, view."""
    batch, channels, height, width = h.size()
    h = h.view(batch, groups, channels // groups, height, width)
    return torch.transpose(h, 1, 2).contiguous().view(batch, -1, height, width)


def _windows(h: Tensor) -> Tensor:
    """Window partition and its reverse, channels last."""
    batch, channels, height, width = h.shape
    h = h.permute(0, 2, 3, 1).view(batch, height // 2, 2, width // 2, 2, channels)
    windows = h.permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, channels) * 2.0
    h = windows.view(batch, height // 2, width // 2, 2, 2, -1).permute(0, 1, 3, 2, 4, 5)
    return h.contiguous().view(batch, height, width, -1).permute(0, 3, 1, 2)


def _space_to_channels(h: Tensor) -> Tensor:
    batch, channels, height, width = h.shape
    h = h.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 3, 5, 1, 2, 4)
    return h.reshape(batch, 4 * channels, height // 2, width // 2)


def _partly_rotated(h: Tensor) -> Tensor:
    """Complex numbers in a part of the channels: in a narrower tensor its strides may be odd."""
    rest, part = h.split([10, 6], -1)
    turned = torch.view_as_complex(part.unflatten(-1, (3, 2))) * 1j
    return torch.cat((rest, torch.view_as_real(turned).flatten(-2)), -1)


_SAME_SHAPE: dict[str, tuple[Layout, Op]] = {
    "view and back": (IMAGE, lambda h: h.view(h.shape[0], 8, -1).view(h.shape)),
    "view of a tuple": (IMAGE, lambda h: h.view((h.size(0), h.size(1), -1)).view(h.size())),
    "view of literals": (VECTOR, lambda h: h.view(-1, 2, 4).reshape(-1, 8)),
    "view of dynamic sizes": (IMAGE, lambda h: h.view(*h.shape[:2], h.shape[2] * h.shape[3]).view_as(h)),
    "view of computed sizes": (
        IMAGE,
        lambda h: h.reshape(h.shape[0], h.shape[1] // 4, 4, *h.shape[2:]).reshape(h.shape),
    ),
    "view with the batch in it": (IMAGE, lambda h: h.view(h.shape[0] * h.shape[1], *h.shape[2:]).view_as(h)),
    "view to batches of groups": (
        IMAGE,
        lambda h: h.view(h.shape[0] * 2, h.shape[1] // 2, h.shape[2], -1).reshape_as(h),
    ),
    "reshape method": (IMAGE, lambda h: torch.reshape(h, (h.shape[0], -1)).reshape(h.shape)),
    "flatten and unflatten": (IMAGE, lambda h: h.flatten(2).unflatten(2, h.shape[2:])),
    "unflatten channels": (IMAGE, lambda h: torch.unflatten(h, 1, (2, -1)).flatten(1, 2)),
    "unflatten by keywords": (IMAGE, lambda h: h.unflatten(dim=1, sizes=(4, 2)).flatten(start_dim=1, end_dim=2)),
    "permute": (IMAGE, lambda h: h.permute(0, 2, 3, 1).permute(0, 3, 1, 2)),
    "permute of a list": (IMAGE, lambda h: torch.permute(h, [0, -1, 1, 2]).permute((0, 2, 3, 1))),
    "transpose": (TOKENS, lambda h: h.transpose(1, 2).contiguous().transpose(-1, -2)),
    "swapaxes": (TOKENS, lambda h: h.swapaxes(1, 2).swapdims(-1, 1)),
    "t": (VECTOR, lambda h: h.t().T),
    "mT": (TOKENS, lambda h: h.mT.tanh().mT),
    "adjoint": (TOKENS, lambda h: h.mH.adjoint()),
    "movedim": (IMAGE, lambda h: torch.movedim(h, 1, -1).moveaxis(-1, 1)),
    "movedim of several": (IMAGE, lambda h: h.movedim((1, 2), (-1, 1)).movedim((-1, 1), (1, 2))),
    "atleast_1d": (VECTOR, lambda h: torch.atleast_1d(h)),
    "atleast_2d": (VECTOR, lambda h: torch.atleast_2d(h.sum(0)) + torch.atleast_2d(h, h)[1]),
    "atleast_3d": (VECTOR, lambda h: torch.atleast_3d(h)[..., 0] + torch.atleast_3d(h.sum(0))[..., 0]),
    "squeeze": (TOKENS, lambda h: h.unsqueeze(1).squeeze(1).unsqueeze(-1).squeeze()),
    "squeeze of several": (TOKENS, lambda h: h[:, None, None].squeeze((1, 2))),
    "channel shuffle by views": (IMAGE, _shuffled),
    "channel shuffle of four": (IMAGE, lambda h: _shuffled(h, 4)),
    "windows": (IMAGE, _windows),
    "in place": (TOKENS, lambda h: h.clone().unsqueeze_(1).squeeze_(1).transpose_(1, 2).swapaxes_(1, 2)),
}
_OTHER_SHAPE: dict[str, tuple[Layout, Op]] = {
    "flatten": (IMAGE, lambda h: torch.flatten(h, 1)),
    "flatten of a view": (IMAGE, lambda h: h.view(h.size(0), -1)),
    "permute before flatten": (IMAGE, lambda h: h.permute(0, 2, 3, 1).flatten(1)),
    "permute before reshape": (IMAGE, lambda h: h.permute(0, 3, 1, 2).reshape(h.shape[0], -1)),
    "split into tokens": (IMAGE, lambda h: h.flatten(2).mT.flatten(1)),
    "heads moved": (TOKENS, lambda h: h.view(h.shape[0], 7, 2, 4).transpose(1, 2).reshape(h.shape[0], -1)),
    "space to channels": (IMAGE, _space_to_channels),
    "folded pairs": (VECTOR, lambda h: h.view(-1, 4, 2).sum(-1)),
    "folded halves": (VECTOR, lambda h: h.view(-1, 2, 4).sum(1)),
    "three factors": (VECTOR, lambda h: h.view(-1, 2, 2, 2).permute(0, 3, 1, 2).reshape(-1, 8)),
    "cut across": (VECTOR, lambda h: h.view(-1, 4, 2).tanh().view(-1, 2, 4).transpose(1, 2).flatten(1)),
    "complex numbers": (VECTOR, lambda h: torch.view_as_real(torch.view_as_complex(h.view(-1, 4, 2)) * 2).flatten(1)),
    "view_copy": (VECTOR, lambda h: torch.view_copy(h, (h.shape[0], 2, 4)).sum(1)),
    "ravel": (VECTOR, lambda h: h.ravel().view(-1, 8)),
    "halved width": (IMAGE, lambda h: h.reshape(h.shape[0], -1, h.shape[2], h.shape[3] // 2)),
}


class TwoShapes(nn.Module):
    """A shape read from one activation and given to another one that is made by another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x), self.second(x)
        return self.last(a.flatten(2).view(b.shape) + b)


class ViewedAs(TwoShapes):
    """view_as ties the two."""

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        return self.last(a.flatten(1).view_as(a) * self.second(x).flatten(1).reshape_as(a))


class Mixer(nn.Module):
    """A layer that mixes tokens and one that mixes channels; the number of tokens is a width of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tokens, self.back = nn.Linear(5, 8), nn.Linear(7, 6), nn.Linear(6, 7)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h + self.back(self.tokens(h.transpose(1, 2)).relu()).transpose(1, 2))


_MODULES: dict[str, Callable[[], nn.Module]] = {
    "Flatten": lambda: nn.Flatten(),
    "Flatten from two": lambda: nn.Sequential(nn.Flatten(2), nn.Flatten(1)),
    "Unflatten": lambda: nn.Sequential(nn.Unflatten(1, (2, 4)), nn.Flatten(1, 2)),
    "ChannelShuffle": lambda: nn.ChannelShuffle(2),
}


def _case(name: str, layout: Layout, op: Op, **about: Any) -> Case:
    return op_case(f"reshape/{name}", layout, op, fixed_size=True, **about)


CASES = [
    *(op_case(f"reshape/{n}", layout, op) for n, (layout, op) in _SAME_SHAPE.items()),
    *(_case(n, layout, op) for n, (layout, op) in _OTHER_SHAPE.items()),
    *(module_case(f"reshape/{n}", IMAGE, make, fixed_size=True) for n, make in _MODULES.items()),
    *everywhere("reshape/channel shuffle", IMAGE, lambda: _shuffled),
    *everywhere("reshape/window partition", IMAGE, lambda: _windows),
    *everywhere("reshape/pairs of channels", VECTOR, lambda: lambda h: h.view(-1, 4, 2).mT.reshape(-1, 8)),
    Case("reshape/shape of another", TwoShapes, IMAGE.sample, ("first.weight", "second.weight"), resized=IMAGE.resized),
    Case("reshape/viewed as another", ViewedAs, IMAGE.sample, ("first.weight", "second.weight"), resized=IMAGE.resized),
    op_case("reshape/rotated part", TOKENS, _partly_rotated, 16),
    Case("reshape/mixer", Mixer, TOKENS.sample, ("first.weight", "tokens.weight")),
]
