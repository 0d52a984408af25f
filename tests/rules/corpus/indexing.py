"""Slices with every kind of bound and step, numbers, None, ellipsis, index lists and tensors, roll, flip, gather."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.rules.cases import IMAGE, TOKENS, VECTOR, Layout, Op, everywhere, module_case, op_case

_ORDER = (5, 2, 7, 0, 3, 1, 6, 4)


class Buffered(nn.Module):
    """An index that is a buffer."""

    def __init__(self, op: Callable[[Tensor, Tensor], Tensor], index: tuple[int, ...] = _ORDER) -> None:
        super().__init__()
        self.op = op
        self.register_buffer("index", torch.tensor(index))

    def forward(self, h: Tensor) -> Tensor:
        return self.op(h, self.index)


class NotStored(Buffered):
    """An index that is a buffer outside the state dict."""

    def __init__(self, op: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(op)
        self.register_buffer("index", torch.tensor(_ORDER), persistent=False)


class BiasTable(nn.Module):
    """Attention with a relative position bias looked up in a table by an index buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(13, 2))
        places = torch.arange(7)
        self.register_buffer("index", places[:, None] - places[None, :] + 6)

    def forward(self, h: Tensor) -> Tensor:
        bias = self.table[self.index.view(-1)].view(7, 7, -1).permute(2, 0, 1).contiguous()
        q = h.unflatten(-1, (2, 4)).transpose(1, 2)
        scores = (q @ q.transpose(-1, -2) + bias.unsqueeze(0)).softmax(-1)
        return (scores @ q).transpose(1, 2).flatten(2)


class DirectTable(BiasTable):
    """The same looked up with a two-dimensional index."""

    def forward(self, h: Tensor) -> Tensor:
        bias = self.table[self.index].permute(2, 0, 1)
        q = h.unflatten(-1, (2, 4)).transpose(1, 2)
        return ((q @ q.mT + bias).softmax(-1) @ q).transpose(1, 2).flatten(2)


_BASIC: dict[str, tuple[Layout, Op]] = {
    "slice of channels": (IMAGE, lambda h: h[:, 2:6]),
    "negative bounds": (IMAGE, lambda h: h[:, -5:-1]),
    "bound beyond the end": (IMAGE, lambda h: h[:, 3:100]),
    "dynamic bound": (IMAGE, lambda h: h[:, : h.shape[1] // 2]),
    "strided": (IMAGE, lambda h: h[:, ::2]),
    "strided with an offset": (IMAGE, lambda h: h[:, 1::3]),
    "strided both halves": (IMAGE, lambda h: h[:, ::2] * h[:, 1::2]),
    "strided over space": (IMAGE, lambda h: h[:, :, ::2, ::2]),
    "strided channels and space": (IMAGE, lambda h: h[:, ::2, 1:, ::2]),
    "interleaved rotation": (TOKENS, lambda h: torch.stack((-h[..., 1::2], h[..., ::2]), -1).flatten(-2)),
    "ellipsis": (TOKENS, lambda h: h[..., 1:5]),
    "ellipsis in the middle": (IMAGE, lambda h: h[:, 2:, ..., 0]),
    "number": (TOKENS, lambda h: h[:, 0]),
    "negative number": (TOKENS, lambda h: h[:, -1, 2:]),
    "number of a channel": (IMAGE, lambda h: h * h[:, 3, None]),
    "negative number of a channel": (IMAGE, lambda h: h * h[:, -2][:, None]),
    "none": (VECTOR, lambda h: h[:, None, :, None].flatten(1)),
    "everything": (IMAGE, lambda h: h[:][...][:, :, :]),
    "nested": (IMAGE, lambda h: h[:, 1:][:, 2:][:, :-1]),
    "overlapping": (VECTOR, lambda h: h[:, :6] * h[:, 2:]),
}
_ARRAYS: dict[str, tuple[Layout, Op]] = {
    "list": (IMAGE, lambda h: h[:, [0, 2, 5]]),
    "list, permuting": (IMAGE, lambda h: h[:, list(_ORDER)]),
    "list with repeats": (VECTOR, lambda h: h[:, [1, 1, 4, 0]]),
    "negative list": (VECTOR, lambda h: h[:, [-1, -3, 2]]),
    "list after ellipsis": (TOKENS, lambda h: h[..., [3, 1, 6]]),
    "list and slices": (IMAGE, lambda h: h[:, [0, 2, 5], 1:, ::2]),
    "constant tensor": (IMAGE, lambda h: h[:, torch.tensor([4, 0, 6])]),
    "index_select": (IMAGE, lambda h: torch.index_select(h, 1, torch.tensor([4, 0, 6, 6]))),
    "index_select method": (TOKENS, lambda h: h.index_select(-1, torch.tensor(_ORDER))),
    "index_select of space": (IMAGE, lambda h: h.index_select(2, torch.tensor([0, 2]))),
    "list of space": (IMAGE, lambda h: h[:, :, [0, 2]]),
    "two lists of space": (IMAGE, lambda h: h[:, :, [0, 2], [1, 3]]),
    "array over tokens": (TOKENS, lambda h: h[:, torch.arange(h.shape[1] - 1, -1, -1)]),
    "rows by number": (TOKENS, lambda h: h[torch.arange(h.shape[0]), 2]),
    "take_along_dim over tokens": (TOKENS, lambda h: torch.take_along_dim(h, h.argsort(1), 1)),
    "gather over tokens": (TOKENS, lambda h: h.gather(1, h.argmax(1, keepdim=True).expand(-1, 3, -1))),
    "roll": (IMAGE, lambda h: torch.roll(h, 3, 1)),
    "roll back": (IMAGE, lambda h: torch.roll(h, shifts=-2, dims=1) + h.roll(-2, 1)),
    "roll of several": (IMAGE, lambda h: torch.roll(h, (1, 2), (1, 2))),
    "roll of space": (IMAGE, lambda h: torch.roll(h, shifts=(1, -1), dims=(2, 3))),
    "roll past the end": (VECTOR, lambda h: h.roll(11, -1)),
    "flip": (IMAGE, lambda h: torch.flip(h, (1,))),
    "flip of several": (IMAGE, lambda h: h.flip(1, 2)),
    "flip of space": (IMAGE, lambda h: h.flip([-1])),
    "fliplr": (VECTOR, lambda h: torch.fliplr(h)),
    "flipud": (TOKENS, lambda h: torch.flipud(h.transpose(0, 1)).transpose(0, 1)),
    "rot90": (IMAGE, lambda h: torch.rot90(h, 1, (2, 3))),
    "masked by a buffer-free mask": (TOKENS, lambda h: h * (torch.arange(h.shape[1]) > 2)[:, None]),
    "tril": (TOKENS, lambda h: torch.tril(h @ h.mT) @ h),
    "diagonal of space": (TOKENS, lambda h: torch.diagonal(h @ h.mT, dim1=1, dim2=2)[..., None] * h),
}
_BUFFERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index_select": lambda h, i: h.index_select(1, i),
    "index_select, keywords": lambda h, i: torch.index_select(input=h, dim=1, index=i),
    "indexing": lambda h, i: h[:, i],
    "indexing and a slice": lambda h, i: h[:, i, 1:],
    "indexing and a step": lambda h, i: h[:, i, ::2],
}

CASES = [
    *(
        op_case(f"index/{n}", layout, op, fixed_size=n.startswith("list of"))
        for n, (layout, op) in (_BASIC | _ARRAYS).items()
    ),
    *(module_case(f"index/buffer, {n}", IMAGE, lambda op=op: Buffered(op)) for n, op in _BUFFERS.items()),
    module_case("index/buffer outside the state dict", IMAGE, lambda: NotStored(_BUFFERS["indexing"])),
    module_case("index/buffer used twice", IMAGE, lambda: Buffered(lambda h, i: h[:, i][:, i])),
    module_case("index/permuted parameter", VECTOR, lambda: Buffered(lambda h, i: h * torch.linspace(1, 2, 8)[i])),
    module_case("index/position bias", TOKENS, BiasTable, fixed_size=True, free=("first.weight", "middle.table:1")),
    module_case(
        "index/position bias by two dims", TOKENS, DirectTable, fixed_size=True, free=("first.weight", "middle.table:1")
    ),
    *everywhere("index/flipped channels", IMAGE, lambda: lambda h: h.flip(1)),
    *everywhere("index/rolled channels", IMAGE, lambda: lambda h: h.roll(2, 1)),
    *everywhere("index/permuted channels", IMAGE, lambda: Buffered(_BUFFERS["indexing"])),
    *everywhere(
        "index/interleaved", TOKENS, lambda: lambda h: torch.stack((-h[..., 1::2], h[..., ::2]), -1).flatten(-2)
    ),
]
