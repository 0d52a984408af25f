"""Tables read up to a size of the input keep the rows that the sample did not reach."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import fxprune

from .compiled import pruned

READS: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "slice": lambda table, length: table[:, :length],
    "shifted slice": lambda table, length: table[:, 2 : 2 + length],
    "narrow": lambda table, length: table.narrow(1, 1, length),
    "split": lambda table, length: table.split([length, 12 - length], 1)[0],
    "number": lambda table, length: table[:, length : length + 1].expand(-1, length, -1),
    "select": lambda table, length: table.select(1, length)[:, None],
}


class Table(nn.Module):
    """Tokens (batch, length, 8) plus a table (1, 12, 16) of parameters or of a buffer, read in part."""

    def __init__(self, read: Callable[[torch.Tensor, int], torch.Tensor], buffer: bool) -> None:
        super().__init__()
        self.first, self.last, self.read = nn.Linear(8, 16), nn.Linear(16, 4), read
        if buffer:
            self.register_buffer("table", torch.randn(1, 12, 16))
        else:
            self.table = nn.Parameter(torch.randn(1, 12, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x) + self.read(self.table, x.shape[1]))


@pytest.mark.parametrize("buffer", [True, False], ids=["buffer", "parameter"])
@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
def test_longer_inputs_find_their_rows(read: Callable[[torch.Tensor, int], torch.Tensor], buffer: bool) -> None:
    model = Table(read, buffer)
    graph = fxprune.analyze(model, torch.randn(2, 5, 8))
    assert [(g.name, g.variable.size) for g in graph.groups] == [("first", 16)]
    result = pruned(model, torch.randn(2, 5, 8), budget="channels")
    assert result(torch.randn(3, 7, 8)).shape == (3, 7, 4)
    copy = fxprune.compile(model, torch.randn(2, 5, 8), 0.0)
    longer = torch.randn(3, 7, 8)
    torch.testing.assert_close(copy(longer), model(longer))
