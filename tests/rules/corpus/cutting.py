"""split, chunk, unbind, narrow, select, cat, stack and gates of two halves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.rules.cases import IMAGE, TOKENS, VECTOR, Case, Op, everywhere, module_case, op_case


def _swapped(parts: Callable[[Tensor], object]) -> Op:
    """The parts, last first and each changed in its own way."""

    def op(h: Tensor) -> Tensor:
        pieces = list(parts(h))  # type: ignore[call-overload]
        return torch.cat([p * (i + 1.0) for i, p in enumerate(pieces[::-1])], dim=1)

    return op


class Branches(nn.Module):
    """Split, one part through a layer, concatenated with all parts (as detectors' blocks do)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        parts.append(self.inner(parts[-1]))
        return self.last(torch.cat(parts, 1))


class Dense(nn.Module):
    """Each layer reads everything before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (
            nn.Conv2d(3, 6, 1),
            nn.Conv2d(6, 4, 3, padding=1),
            nn.Conv2d(10, 4, 3, padding=1),
        )
        self.norm, self.last = nn.BatchNorm2d(14), nn.Conv2d(14, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.first(x)]
        features.append(self.second(torch.cat(features, 1)).relu())
        features.append(self.third(torch.cat(features, 1)).relu())
        return self.last(self.norm(torch.cat(features, 1)))


class Stacked(nn.Module):
    """Two branches stacked and joined with weights that a softmax makes (split attention)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, padding=1)
        self.gate, self.last = nn.Linear(8, 16), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.stack((self.first(x), self.second(x)), dim=1)
        weights = self.gate(h.sum(1).mean((2, 3))).view(-1, 2, 8).softmax(1)
        return self.last((h * weights[..., None, None]).sum(1))


class Recombined(nn.Module):
    """Concatenated in one order and split in another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 6), nn.Linear(5, 10), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.cat((self.first(x), self.second(x)), -1).split(8, -1)
        return self.last(a + b)


_PARTS: dict[str, Callable[[Tensor], object]] = {
    "chunk": lambda h: h.chunk(2, dim=1),
    "chunk of three": lambda h: torch.chunk(h, 3, 1),
    "chunk, keyword": lambda h: torch.chunk(h, chunks=4, dim=-3),
    "split": lambda h: h.split(4, 1),
    "split, uneven": lambda h: torch.split(h, 3, dim=1),
    "split of sizes": lambda h: torch.split(h, [1, 2, 5], dim=1),
    "split_with_sizes": lambda h: torch.split_with_sizes(h, (5, 3), 1),
    "split, keyword": lambda h: torch.split(h, split_size_or_sections=[6, 2], dim=1),
    "split of dynamic size": lambda h: h.split(h.shape[1] // 2, 1),
    "tensor_split": lambda h: torch.tensor_split(h, 3, dim=1),
    "tensor_split of indices": lambda h: h.tensor_split((2, 5), 1),
    "tensor_split, keyword": lambda h: torch.tensor_split(h, indices=[3], dim=1),
    "hsplit": lambda h: torch.hsplit(h, 2),
    "narrow": lambda h: (h.narrow(1, 0, 3), h.narrow(1, 3, 4), h.narrow(1, 7, 1)),
    "narrow, from the end": lambda h: (torch.narrow(h, 1, -2, 2), torch.narrow(h, dim=-3, start=0, length=6)),
    "slices": lambda h: (h[:, :3], h[:, 3:]),
    "unsafe_split": lambda h: torch.unsafe_split(h, 4, 1),
    "narrow_copy": lambda h: (torch.narrow_copy(h, 1, 2, 3), torch.narrow_copy(h, 1, 0, 2)),
    "unsafe_split_with_sizes": lambda h: torch.unsafe_split_with_sizes(h, (5, 3), 1),
    "unsafe_chunk": lambda h: torch.unsafe_chunk(h, 2, 1),
    "split of nothing": lambda h: h.split(8, 1),
}
_OPS: dict[str, Op] = {
    "unbind after a view": lambda h: sum(h.unflatten(1, (2, 4)).unbind(1)),  # type: ignore[dict-item,return-value]
    "unbind of space": lambda h: torch.stack(h.unbind(-1), -1),
    "iteration over a view": lambda h: torch.cat(
        [p * 2 for p in h.view(h.shape[0], 4, 2, *h.shape[2:]).transpose(0, 1)], 1
    ),
    "select": lambda h: h.select(2, 0) + torch.select(h, -2, -1),
    "select a channel": lambda h: h * h.select(1, 3).unsqueeze(1) + h[:, 0:1],
    "stack": lambda h: torch.stack([h, h.tanh()], 1).flatten(1, 2),
    "stack, last": lambda h: torch.stack((h, h.tanh()), dim=-1).sum(-1),
    "hstack": lambda h: torch.hstack((h, h.tanh())),
    "vstack": lambda h: torch.vstack((h, h.tanh()))[: h.shape[0]],
    "dsplit": lambda h: torch.dsplit(h.transpose(1, 2), 2)[1].transpose(1, 2),
    "row_stack": lambda h: torch.row_stack((h, h.tanh()))[: h.shape[0]],
    "dstack": lambda h: torch.dstack((h, h.tanh())),
    "concat with a constant": lambda h: torch.concat((h, torch.ones_like(h[:, :2])), 1),
    "cat of batch": lambda h: torch.cat((h, h.tanh()), 0)[: h.shape[0]],
    "cat, axis keyword": lambda h: torch.concatenate((h, h), axis=1),  # type: ignore[call-overload]
    "glu": lambda h: F.glu(h, 1),
    "gate by chunk": lambda h: (lambda a, b: a * b.sigmoid())(*h.chunk(2, 1)),
    "gate by slices": lambda h: h[:, :4] * torch.tanh(h[:, 4:]),
    "swap of halves": lambda h: torch.cat((h[:, 4:], h[:, :4]), 1),
    "rotation": lambda h: h + torch.cat((-h[:, 4:], h[:, :4]), dim=1),
}

CASES = [
    *(op_case(f"cut/{n}", IMAGE, _swapped(parts)) for n, parts in _PARTS.items()),
    *(op_case(f"cut/{n}", IMAGE, op, fixed_size=n == "unbind of space") for n, op in _OPS.items()),
    op_case("cut/glu of tokens", TOKENS, lambda h: F.glu(h)),
    module_case("cut/GLU", TOKENS, lambda: nn.GLU()),
    module_case("cut/GLU of images", IMAGE, lambda: nn.GLU(1)),
    op_case("cut/column_stack", VECTOR, lambda h: torch.column_stack((h, h.tanh()))),
    op_case("cut/vsplit", VECTOR, lambda h: torch.vsplit(h.t(), 2)[1].t()),
    *everywhere("cut/rotated halves", TOKENS, lambda: lambda h: torch.cat((-h[..., 4:], h[..., :4]), -1)),
    *everywhere("cut/changed part", IMAGE, lambda: _swapped(lambda h: h.split((4, 4), 1))),
    Case("cut/branches", Branches, IMAGE.sample, ("first.weight", "inner.weight"), resized=IMAGE.resized),
    Case("cut/dense", Dense, IMAGE.sample, ("first.weight", "second.weight", "third.weight"), resized=IMAGE.resized),
    Case(
        "cut/split attention",
        Stacked,
        IMAGE.sample,
        ("first.weight", "second.weight", "gate.weight"),
        resized=IMAGE.resized,
    ),
    Case("cut/other cuts than joins", Recombined, VECTOR.sample, ("first.weight", "second.weight")),
]
