"""Networks of two or three ops of the corpus one after another, so that every rule meets every other."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tests.rules.cases import IMAGE, SERIES, TOKENS, VECTOR, VOLUME, Between, Case, Layout
from tests.rules.corpus import CASES
from tests.rules.corpus.pinned import Through
from tests.rules.prepared import built, sampled

LAYOUTS = (IMAGE, TOKENS, VECTOR, SERIES, VOLUME)


class Chain(nn.Module):
    """first, the ops in order, last; every second op may stand on a branch that is added to its input."""

    def __init__(self, first: nn.Module, ops: Sequence[Callable[[Tensor], Any]], branches: Sequence[bool]) -> None:
        super().__init__()
        self.first, self.last = first, nn.Identity()
        self.branches = tuple(branches)
        # What is no module is kept in a plain list, as Between keeps it in an attribute.
        self.ops = list(ops)
        self.held = nn.ModuleList(op for op in ops if isinstance(op, nn.Module))

    def middle(self, x: Tensor) -> Any:
        """Everything between the first and the last layer."""
        modules = iter(self.held)
        for op, branch in zip(self.ops, self.branches, strict=True):
            function = next(modules) if isinstance(op, nn.Module) else op
            y = function(x)
            x = x + y if branch else y
        return x

    def forward(self, x: Tensor) -> Any:
        return self.last(self.middle(self.first(x)))


@cache
def links(layout: Layout) -> tuple[Case, ...]:
    """The cases of a layout in which an op stands between two layers, those that cannot be chained left out."""
    return tuple(c for c in CASES if c.sample is layout.sample and type(built(c)) in (Between, Through))


def chained(
    layout: Layout, cases: Sequence[Case], branches: Sequence[bool]
) -> tuple[nn.Module, tuple[Tensor, ...]] | None:
    """The network and its sample; None where an op cannot take what the one before it gives.

    Two layers of ``layout`` read what the last op makes, so that a width is left to prune where an op pins its own.
    """
    parts = [built(case) for case in cases]
    sample = sampled(cases[0], 2)
    net = Chain(parts[0].first, [part.middle for part in parts], branches).double().eval()
    try:
        with torch.no_grad():
            h = net.middle(net.first(*sample))
            if not fit_to_read(h):
                return None
            net.last = reader(layout, h)
            out = net(*sample)
    except Exception:  # ops of other shapes and types do not fit one another in any number of ways
        return None
    return (net, sample) if bool(out.isfinite().all()) and out.std() > 0 else None


def fit_to_read(h: Any) -> bool:
    """Whether a layer can read what an op makes."""
    return isinstance(h, Tensor) and h.is_floating_point() and h.dim() >= 2 and bool(h.isfinite().all())


def reader(layout: Layout, h: Tensor) -> nn.Module:
    """Two layers over the channels of ``h``."""
    torch.default_generator.manual_seed(2)
    width = h.shape[layout.dim]
    return nn.Sequential(layout.last(h.dim(), width), nn.Tanh(), layout.last(h.dim(), 4)).double()


def random_chain(seed: int) -> tuple[Layout, tuple[Case, ...], tuple[bool, ...]]:
    """The layout, the ops and the branches of a seed."""
    draw = random.Random(seed)
    layout, count = draw.choice(LAYOUTS), draw.choice((2, 2, 3))
    ops = tuple(draw.choice(links(layout)) for _ in range(count))
    return layout, ops, tuple(draw.random() < 0.25 for _ in range(count))
