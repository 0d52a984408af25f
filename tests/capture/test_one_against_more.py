"""A batch of one, or a sequence of one step, that goes a way of its own gets a graph for it, without being asked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxprune

Way = Callable[["Net", torch.Tensor], torch.Tensor]


class Net(nn.Module):
    """Sequences (batch, steps, 6) to (batch, steps, 4), with something in between."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.first, self.last, self.way = nn.Linear(6, 12), nn.Linear(12, 4), way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.way(self, self.first(x).tanh())


def by_batch(net: Net, h: torch.Tensor) -> torch.Tensor:
    return net.last(h * 2 if h.shape[0] == 1 else h + 1)


def squeezed(net: Net, h: torch.Tensor) -> torch.Tensor:
    h = h.mean(1).squeeze()
    if h.dim() == 1:
        h = h.unsqueeze(0) * 2
    return net.last(h)


def squeezed_dim(net: Net, h: torch.Tensor) -> torch.Tensor:
    h = torch.squeeze(h, dim=0)
    return net.last(h) * h.ndim


def squeezed_in_place(net: Net, h: torch.Tensor) -> torch.Tensor:
    h = h.mean(1, keepdim=True).clone()
    h.squeeze_(axis=0)
    return net.last(h) / len(h.shape)


def squeezed_twice(net: Net, h: torch.Tensor) -> torch.Tensor:
    h = h.squeeze((0, 1)).relu()
    return net.last(h).flatten() if h.ndimension() < 2 else net.last(h)


def causal(net: Net, h: torch.Tensor) -> torch.Tensor:
    return net.last(F.scaled_dot_product_attention(h, h, h, is_causal=h.shape[1] > 1))


def cut(net: Net, h: torch.Tensor) -> torch.Tensor:
    return net.last(h[:, :4] if h.shape[1] > 4 else h)


def both(net: Net, h: torch.Tensor) -> torch.Tensor:
    h = h.sin() if h.shape[0] == 1 else h
    return net.last(h if h.shape[1] == 1 else h.cos())


@pytest.mark.parametrize(
    "way", [by_batch, squeezed, squeezed_dim, squeezed_in_place, squeezed_twice, causal, cut, both]
)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("steps", [1, 7])
def test_every_branch_equals_the_original(way: Way, batch: int, steps: int) -> None:
    model = Net(way).eval()
    result = fxprune.compile(model, torch.randn(batch, steps, 6), 0.0, verify=way in (by_batch, both))
    for rows in (1, 2, 3, 5):
        for length in (1, 4, 7) if steps > 1 else (1,):
            x = torch.randn(rows, length, 6)
            torch.testing.assert_close(result(x), model(x))


def test_a_forward_that_asks_for_no_rank_needs_one_graph() -> None:
    model = Net(lambda net, h: net.last(h.mean(1).squeeze())).eval()
    result = fxprune.compile(model, torch.randn(1, 5, 6), 0.0)
    assert list(result.graphs) == ["eval"]
    for rows in (1, 2):
        x = torch.randn(rows, 5, 6)
        torch.testing.assert_close(result(x), model(x))


def test_a_table_of_positions_that_is_too_short_for_other_lengths() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.positions, self.last = nn.Embedding(9, 8), nn.Embedding(7, 8), nn.Linear(8, 4)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            # Its table begins with long sequences.
            places = torch.arange(ids.shape[1]) + (0 if ids.shape[1] == 7 else 4)
            return self.last(self.tokens(ids) + self.positions(places))

    model, ids = Tokens().eval(), torch.randint(0, 9, (2, 7))
    result = fxprune.compile(model, ids, 0.0)
    for length in (7, 1):
        torch.testing.assert_close(result(ids[:, :length]), model(ids[:, :length]))
