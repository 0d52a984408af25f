"""Tables read up to a size of the input keep the rows that the sample did not reach."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import fxprune
from tests.capture.compiled import pruned

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


class Registers(nn.Module):
    """Tokens (batch, length, 8) with four learned ones before and six after them, of which a part goes on."""

    def __init__(self, part: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.mix, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.before, self.after = nn.Parameter(torch.randn(1, 4, 16)), nn.Parameter(torch.randn(1, 6, 16))
        self.part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = len(x)
        x = torch.cat((self.before.expand(rows, -1, -1), self.first(x), self.after.expand(rows, -1, -1)), 1)
        weights = (x @ x.mT).softmax(-1)
        return self.last(self.part(self.mix(weights @ x)))


# Name: the part, and whether learned tokens may go.
PARTS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], bool]] = {
    "between": (lambda x: x[:, 4:-6], True),
    "open end": (lambda x: x[:, 4:].mean(1), True),
    "open start": (lambda x: x[:, :-6].mean(1), True),
    "last": (lambda x: x[:, -6:].sum(1), True),
    "within": (lambda x: x[:, 6:].sum(1), True),
    "number from the end": (lambda x: x[:, -2], True),
    "select from the end": (lambda x: x.select(1, -2), True),
    "up to a number behind": (lambda x: x[:, :11].sum(1), False),
    "every second": (lambda x: x[:, ::2].sum(1), False),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_tokens_with_learned_ones_among_them_are_those_of_longer_inputs(name: str) -> None:
    part, may_go = PARTS[name]
    model = Registers(part).eval()
    short, long = torch.randn(2, 5, 8), torch.randn(2, 9, 8)
    if not may_go:
        assert not {"before", "after"} & {group.name for group in fxprune.analyze(model, short).groups}
        return
    plan = fxprune.plan(model, short, 0.3, budget="channels", scope="uniform")
    assert all(plan.keep[table][1] is not None for table in ("before", "after"))
    result = fxprune.apply(model, short, plan)
    torch.testing.assert_close(result(long), fxprune.apply(model, long, plan)(long))
