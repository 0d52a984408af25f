"""Tables read up to a size of the input keep the rows that the sample did not reach."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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


class Padded(nn.Module):
    """Convolutions that pad a signal so that the last window is full, by numbers that are tensors.

    ``held``: the stride and the kernel are buffers, as in an audio codec, and not made in the forward.
    """

    def __init__(self, mode: str, held: bool = True) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv1d(1, 8, 4, 2), nn.Conv1d(8, 12, 6, 3), nn.Conv1d(12, 4, 3, 1)])
        self.mode, self.held = mode, held
        for number, conv in enumerate(self.convs):
            self.register_buffer(f"stride{number}", torch.tensor(conv.stride[0]), persistent=False)
            self.register_buffer(f"kernel{number}", torch.tensor(conv.kernel_size[0]), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number, conv in enumerate(self.convs):
            stride, kernel = getattr(self, f"stride{number}"), getattr(self, f"kernel{number}")
            if not self.held:
                stride, kernel = torch.tensor(conv.stride[0]), torch.tensor(conv.kernel_size[0])
            total, length = kernel - stride, x.shape[-1]
            frames = torch.ceil((length - kernel + total) / stride + 1).to(torch.int64) - 1
            x = self.padded(x, total, frames * stride + kernel - total - length)
            x = conv(x).relu()
        return x

    def padded(self, x: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] <= max(left, right):
            x = nn.functional.pad(x, (0, 2))
        return nn.functional.pad(x, (left, right), self.mode)


@pytest.mark.parametrize("held", [True, False], ids=["held", "made"])
@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_amounts_of_padding_that_are_tensors_made_of_sizes(mode: str, held: bool) -> None:
    model = Padded(mode, held).eval()
    result = pruned(model, torch.randn(2, 1, 40), budget="channels")
    assert result.get_parameter("convs.1.weight").shape[:2] < (12, 8)
    copy = fxprune.compile(model, torch.randn(2, 1, 40), 0.0)
    for length in range(31, 47):
        x = torch.randn(3, 1, length)
        torch.testing.assert_close(copy(x), model(x))
        assert result(x).shape == model(x).shape


@pytest.mark.parametrize("held", [True, False], ids=["held", "made"])
def test_amounts_of_padding_that_are_tensors_are_exported(held: bool, tmp_path: Path) -> None:
    x = torch.randn(2, 1, 40)
    result = pruned(Padded("reflect", held), x, budget="channels")
    fxprune.export(result, tmp_path / "net.pt2")
    again = torch.export.load(tmp_path / "net.pt2").module()
    torch.testing.assert_close(again(x), result(x))


@pytest.mark.parametrize("length", [2, 3])
def test_another_way_by_a_tensor_made_of_sizes_is_refused(length: int) -> None:
    model = Padded("constant").eval()
    copy = fxprune.compile(model, torch.randn(2, 1, 40), 0.0)
    with pytest.raises(AssertionError, match="inputs of other sizes"):
        copy(torch.randn(2, 1, length))


class Chunks(nn.Module):
    """Goes through a sequence in pieces of a length, or in one piece of its own length; ``back``: from the end."""

    def __init__(self, step: int | None, back: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        self.step, self.back = step, back

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length, step = x.shape[1], self.step or x.shape[1]
        starts = range(length - 1, -1, -step) if self.back else range(0, length, step)
        pieces = [x[:, max(0, at + 1 - step) : at + 1] if self.back else x[:, at : at + step] for at in starts]
        return self.last(torch.cat([self.first(piece).relu() * number for number, piece in enumerate(pieces, 1)], 1))


@pytest.mark.parametrize("back", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("step", [None, 4])
def test_only_the_number_of_steps_of_a_range_is_fixed(step: int | None, back: bool) -> None:
    model = Chunks(step, back).eval()
    copy = fxprune.compile(model, torch.randn(2, 10, 8), 0.0)
    for length in range(1, 16):
        x = torch.randn(2, length, 8)
        if step is None or length <= 12:  # those of two pieces and of one have graphs of their own
            torch.testing.assert_close(copy(x), model(x))
        else:
            with pytest.raises(AssertionError, match="inputs of other sizes"):
                copy(x)


class Halved(nn.Module):
    """Goes another way for an odd length, asked of a tensor, and scales by a number read from one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = torch.tensor(x.shape[1])
        h = self.first(x) * (length / 2).item()
        return self.last(h if length % 2 else h.relu())


def test_numbers_and_truth_values_of_tensors_made_of_sizes_follow_the_sizes() -> None:
    model = Halved().eval()
    copy = fxprune.compile(model, torch.randn(2, 6, 8), 0.0)
    for length in (2, 4, 6, 8, 12):
        x = torch.randn(2, length, 8)
        torch.testing.assert_close(copy(x), model(x))
