"""A case: a small network in which one op stands between what makes channels and what reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.rules.oracles import Kept

Op = Callable[[Tensor], Tensor]
Sample = Callable[[int], tuple[Any, ...]]
Narrow = Callable[[Any, Kept, tuple[Any, ...]], Any]


@dataclass(frozen=True)
class Case:
    """One network and what is expected of it.

    Attributes:
        name: what is tested, ``family/op``.
        build: makes the network (random weights; the driver seeds and converts to float64).
        sample: arguments of the forward for a batch size.
        free: dims of tensors that must shrink under a random prune, "name" (dim 0) or "name:dim".
        narrow: ``narrow(net, kept, args)`` computes the expected output by hand from selected channels; without one the
            masked original is the oracle.
        resized: arguments at another resolution, where the network takes one.
        pinned: tensor dims that must stay, because no smaller network could serve them.
    """

    name: str
    build: Callable[[], nn.Module]
    sample: Sample
    free: tuple[str, ...] = ("first.weight",)
    narrow: Narrow | None = None
    resized: Sample | None = None
    pinned: tuple[str, ...] = field(default=())


class Between(nn.Module):
    """first, the op, last."""

    def __init__(self, first: nn.Module, middle: Op, last: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.last = first, middle, last

    def forward(self, x: Tensor) -> Any:
        return self.last(self.middle(self.first(x)))


class Residual(Between):
    """The op on a branch that is added to its own input."""

    def forward(self, x: Tensor) -> Any:
        h = self.first(x)
        return self.last(h + self.middle(h))


class Joined(Between):
    """The op's result concatenated with its input along the channels."""

    def __init__(self, first: nn.Module, middle: Op, last: nn.Module, dim: int) -> None:
        super().__init__(first, middle, last)
        self.dim = dim

    def forward(self, x: Tensor) -> Any:
        h = self.first(x)
        return self.last(torch.cat((self.middle(h), h), dim=self.dim))


class Shared(Between):
    """The op's input has a second reader."""

    def __init__(self, first: nn.Module, middle: Op, last: nn.Module, other: nn.Module) -> None:
        super().__init__(first, middle, last)
        self.other = other

    def forward(self, x: Tensor) -> Any:
        h = self.first(x)
        read = self.other(h)
        return self.last(self.middle(h)), read


@dataclass(frozen=True)
class Layout:
    """How samples look, what makes channels of them, and what reads channels. ``dim``: where the channels are."""

    sample: Sample
    first: Callable[[int], nn.Module]
    last: Callable[[int, int], nn.Module]
    dim: int
    resized: Sample | None = None


def _reader_of_images(rank: int, width: int) -> nn.Module:
    readers = {2: nn.Linear, 3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
    return nn.Linear(width, 4) if rank == 2 else readers[rank](width, 4, 1)


def _reader_of_tokens(rank: int, width: int) -> nn.Module:
    return nn.Linear(width, 4)


IMAGE = Layout(
    lambda n: (torch.randn(n, 3, 6, 6),),
    lambda width: nn.Conv2d(3, width, 3, padding=1),
    _reader_of_images,
    1,
    lambda n: (torch.randn(n, 3, 8, 10),),
)
SERIES = Layout(
    lambda n: (torch.randn(n, 3, 12),),
    lambda width: nn.Conv1d(3, width, 3, padding=1),
    _reader_of_images,
    1,
    lambda n: (torch.randn(n, 3, 16),),
)
VOLUME = Layout(
    lambda n: (torch.randn(n, 3, 4, 4, 4),),
    lambda width: nn.Conv3d(3, width, 1),
    _reader_of_images,
    1,
    lambda n: (torch.randn(n, 3, 6, 4, 8),),
)
TOKENS = Layout(
    lambda n: (torch.randn(n, 7, 5),),
    lambda width: nn.Linear(5, width),
    _reader_of_tokens,
    -1,
    lambda n: (torch.randn(n, 9, 5),),
)
VECTOR = Layout(lambda n: (torch.randn(n, 5),), lambda width: nn.Linear(5, width), _reader_of_tokens, -1)


def chain(layout: Layout, middle: Callable[[], Op], width: int, shape: type[Between] = Between) -> nn.Module:
    """The network of a layout around an op; the reader is as wide as what arrives."""
    first, op = layout.first(width), middle()
    with torch.no_grad():
        h = first(*layout.sample(2))
        result = op(h)
    read = result.shape[layout.dim]
    rank = result.dim()
    if shape is Joined:
        return Joined(first, op, layout.last(rank, read + h.shape[layout.dim]), layout.dim)
    if shape is Shared:
        return Shared(first, op, layout.last(rank, read), layout.last(h.dim(), h.shape[layout.dim]))
    return shape(first, op, layout.last(rank, read))


def module_case(
    name: str, layout: Layout, middle: Callable[[], Op], width: int = 8, *, fixed_size: bool = False, **about: Any
) -> Case:
    """A case around what ``middle()`` makes (a module with parameters, say)."""
    resized = None if fixed_size else layout.resized
    return Case(name, lambda: chain(layout, middle, width), layout.sample, resized=resized, **about)


def op_case(name: str, layout: Layout, op: Op, width: int = 8, *, fixed_size: bool = False, **about: Any) -> Case:
    """A case around a function of one tensor."""
    return module_case(name, layout, lambda: op, width, fixed_size=fixed_size, **about)


def everywhere(
    name: str, layout: Layout, middle: Callable[[], Op], width: int = 8, *, fixed_size: bool = False, **about: Any
) -> list[Case]:
    """An op that keeps its input's shape: alone, on a residual branch, before a concatenation, with a second reader."""
    resized = None if fixed_size else layout.resized
    shapes = {"": Between, "+residual": Residual, "+concat": Joined, "+reader": Shared}

    def build(shape: type[Between]) -> Callable[[], nn.Module]:
        return lambda: chain(layout, middle, width, shape)

    return [Case(name + suffix, build(s), layout.sample, resized=resized, **about) for suffix, s in shapes.items()]
