"""Tensors made in the forward, buffers per channel, and numbers computed from widths."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.rules.cases import IMAGE, TOKENS, VECTOR, Case, Layout, Op, module_case, op_case
from tests.rules.narrow import around
from tests.rules.oracles import Kept


class Buffered(nn.Module):
    """A buffer with a constant for each channel."""

    def __init__(self, op: Callable[[Tensor, Tensor], Tensor], value: Tensor, persistent: bool = True) -> None:
        super().__init__()
        self.op = op
        self.register_buffer("value", value, persistent=persistent)

    def forward(self, h: Tensor) -> Tensor:
        return self.op(h, self.value)


class Plain(nn.Module):
    """A tensor attribute that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.value = torch.linspace(0.5, 1.5, 8, dtype=torch.float64)

    def forward(self, h: Tensor) -> Tensor:
        return h * self.value


class Positions(nn.Module):
    """Sines of positions, made in the forward from the shape of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        places = torch.arange(h.shape[1], dtype=h.dtype, device=h.device)[:, None]
        rates = torch.exp(torch.arange(0, h.shape[2], 2, dtype=h.dtype) * (-math.log(100.0) / h.shape[2]))
        table = torch.zeros(h.shape[1], h.shape[2], dtype=h.dtype)
        table[:, 0::2] = torch.sin(places * rates)
        table[:, 1::2] = torch.cos(places * rates)
        return self.last(h + table)


class Blur(nn.Module):
    """A fixed filter, the same for each channel, expanded to a depthwise kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filter", torch.ones(1, 1, 3, 3) / 9)

    def forward(self, h: Tensor) -> Tensor:
        return nn.functional.conv2d(h, self.filter.expand(h.shape[1], -1, -1, -1), padding=1, groups=h.shape[1])


class RepeatedBlur(Blur):
    """The same kernel repeated."""

    def forward(self, h: Tensor) -> Tensor:
        return nn.functional.conv2d(h, self.filter.repeat(8, 1, 1, 1), padding=1, groups=8)


_MADE: dict[str, tuple[Layout, Op]] = {
    "zeros": (IMAGE, lambda h: h + torch.zeros(h.shape, dtype=h.dtype)),
    "zeros of sizes": (IMAGE, lambda h: h + torch.zeros(h.shape[0], h.shape[1], 1, 1, dtype=h.dtype)),
    "ones": (VECTOR, lambda h: h * torch.ones(h.shape[1], dtype=h.dtype)),
    "ones of a literal": (VECTOR, lambda h: h * torch.ones(8)),
    "full": (VECTOR, lambda h: h * torch.full((h.shape[0], h.shape[1]), 0.5, dtype=h.dtype)),
    "full, keywords": (VECTOR, lambda h: h * torch.full(size=h.shape, fill_value=0.5, dtype=h.dtype)),
    "arange": (VECTOR, lambda h: h * torch.arange(h.shape[1])),
    "arange of a literal": (VECTOR, lambda h: h * torch.arange(8)),
    "arange with a step": (VECTOR, lambda h: h * torch.arange(1, 2 * h.shape[1], 2, dtype=h.dtype)),
    "linspace": (VECTOR, lambda h: h * torch.linspace(0, 1, h.shape[1], dtype=h.dtype)),
    "logspace": (VECTOR, lambda h: h * torch.logspace(0, 1, h.shape[1], dtype=h.dtype)),
    "eye": (VECTOR, lambda h: h @ torch.eye(h.shape[1], dtype=h.dtype) + h),
    "tensor": (VECTOR, lambda h: h * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])),
    "tensor of a size": (VECTOR, lambda h: h / torch.tensor(h.shape[1])),
    "new_tensor": (VECTOR, lambda h: h * h.new_tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])),
    "new_zeros": (IMAGE, lambda h: torch.cat((h, h.new_zeros(h.shape[0], 4, *h.shape[2:])), 1)),
    "new_ones": (IMAGE, lambda h: h * h.new_ones(h.size(1), 1, 1)),
    "new_full": (IMAGE, lambda h: h * h.new_full((h.size(1), 1, 1), 2.0)),
    "new_empty": (VECTOR, lambda h: h + h.new_empty(h.shape).zero_()),
    "empty": (VECTOR, lambda h: h + torch.empty(h.shape[1], dtype=h.dtype).fill_(0.5)),
    "rand": (VECTOR, lambda h: h + 0 * torch.rand(h.shape, dtype=h.dtype) + 0 * torch.randn(h.shape[1], dtype=h.dtype)),
    "randint": (VECTOR, lambda h: h + 0 * torch.randint(0, 3, h.shape)),
    "randperm": (VECTOR, lambda h: h + 0 * torch.randperm(h.shape[1])),
    "hann_window": (VECTOR, lambda h: h * torch.hann_window(h.shape[1], dtype=h.dtype)),
    "as_tensor": (VECTOR, lambda h: h * torch.as_tensor(h.shape[1], dtype=h.dtype)),
    "as_tensor_of_one": (VECTOR, lambda h: h * 2 + torch.as_tensor(h)),
    "tensor_of_one": (VECTOR, lambda h: h * 2 + torch.tensor(h)),
    "new_tensor_of_one": (VECTOR, lambda h: h * 2 + h[:1].new_tensor(h)),
    "scalar_tensor": (VECTOR, lambda h: h * torch.scalar_tensor(h.shape[1], dtype=h.dtype)),
    "mask of channels": (VECTOR, lambda h: h * (torch.arange(h.shape[1]) % 2 == 0).to(h.dtype)),
    "coordinates": (
        IMAGE,
        lambda h: torch.cat(
            (h, torch.linspace(-1, 1, h.shape[3], dtype=h.dtype).expand(h.shape[0], 1, h.shape[2], h.shape[3])), 1
        ),
    ),
    "padding made by cat": (
        IMAGE,
        lambda h: torch.cat((torch.zeros(h.shape[0], 2, h.shape[2], h.shape[3], dtype=h.dtype), h), 1),
    ),
}
# Numbers computed from a width keep the value they had at full width.
_NUMBERS: dict[str, tuple[Layout, Op]] = {
    "width to a power": (TOKENS, lambda h: h * h.shape[-1] ** -0.5),
    "root of the width": (TOKENS, lambda h: h / math.sqrt(h.shape[-1])),
    "torch root of the width": (TOKENS, lambda h: h / torch.sqrt(torch.tensor(h.shape[-1], dtype=h.dtype))),
    "divided by the width": (TOKENS, lambda h: h / h.size(-1)),
    "sum over the width": (TOKENS, lambda h: h * (h.sum(-1, keepdim=True) / h.shape[-1])),
    "numel": (IMAGE, lambda h: h / (h.numel() // h.shape[0] // h.shape[2] // h.shape[3])),
    "space": (IMAGE, lambda h: h.sum((2, 3)) / (h.shape[2] * h.shape[3])),
    "len": (TOKENS, lambda h: h / len(h[0])),
    "batch": (TOKENS, lambda h: h / h.shape[0]),
    "width plus one": (TOKENS, lambda h: h * (h.shape[-1] + 1) - h * (1 - h.shape[-1])),
    "width modulo": (TOKENS, lambda h: h * (h.shape[-1] % 3) * float(h.shape[-1])),
    "width in a power": (TOKENS, lambda h: h.sigmoid().pow(h.shape[-1] / 2)),
    "width as a bound": (TOKENS, lambda h: h.clamp(-h.shape[-1], h.shape[-1] / 16)),
}


def _unbuffered(net: Any, kept: Kept, h: Tensor) -> Tensor:
    return h / net.middle.value[kept("middle.value")]


CASES = [
    *(op_case(f"made/{n}", layout, op) for n, (layout, op) in _MADE.items()),
    *(op_case(f"number/{n}", layout, op, fixed_size=n == "len") for n, (layout, op) in _NUMBERS.items()),
    module_case("buffer/per channel", VECTOR, lambda: Buffered(torch.mul, torch.rand(8))),
    module_case("buffer/outside the state dict", VECTOR, lambda: Buffered(torch.mul, torch.rand(8), persistent=False)),
    module_case("buffer/of images", IMAGE, lambda: Buffered(torch.add, torch.rand(1, 8, 1, 1))),
    module_case(
        "buffer/divisor", VECTOR, lambda: Buffered(torch.div, torch.rand(8) + 0.5), narrow=around(VECTOR, _unbuffered)
    ),
    module_case("buffer/mask", VECTOR, lambda: Buffered(lambda h, m: h.masked_fill(m, 0.5), torch.arange(8) % 3 == 0)),
    module_case("buffer/integers", VECTOR, lambda: Buffered(torch.mul, torch.arange(8))),
    module_case(
        "buffer/matrix",
        VECTOR,
        lambda: Buffered(torch.matmul, torch.randn(8, 6)),
        free=("first.weight", "middle.value:1"),
    ),
    module_case("buffer/plain attribute", VECTOR, Plain),
    module_case("buffer/blur", IMAGE, Blur),
    module_case("buffer/repeated blur", IMAGE, RepeatedBlur),
    Case("made/sines of positions", Positions, TOKENS.sample, resized=TOKENS.resized),
]
