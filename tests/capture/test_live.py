"""Numbers and sizes that data decide, in the middle of a forward and at its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
import fxprune.errors
from tests.nets.oracles import masked


class Net(nn.Module):
    """Three convolutions, and something made of each result."""

    def __init__(self, middle: Callable[..., Tensor], tail: Callable[..., Any]) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.middle, self.tail = middle, tail

    def forward(self, x: Tensor, *lengths: Tensor) -> Any:
        y = self.second(self.middle(self.first(x).relu(), *lengths))
        return self.tail(self.last(y))


def same(y: Tensor) -> Tensor:
    return y


def selected(y: Tensor) -> tuple[Tensor, Tensor]:
    return y, y[y > 0].sum()


def boxes(y: Tensor) -> tuple[Tensor, Tensor]:
    found = torch.nonzero(y[:, 0] > 0)
    return found, y[:, 1][tuple(found.t())]


def mean(y: Tensor) -> tuple[Tensor, float]:
    return y, y.mean().item()


def best(y: Tensor) -> Tensor:
    y = y.flatten()[y.flatten() > 0]
    return torch.topk(y, min(10, len(y)))[0]


def classes(y: Tensor) -> tuple[Tensor, Tensor]:
    return torch.unique(y.argmax(1)), y


def of_rows(y: Tensor) -> Tensor:
    return y[y.mean((1, 2, 3)) > 0]


def picked_before_a_write(y: Tensor) -> Tensor:
    d, k, y = torch.zeros_like(y), y > 0, y.clone()
    e = y[k]
    y.mul_(2)
    d[k] = e
    return d


def scaled(y: Tensor) -> Tensor:
    return y * int(y.abs().amax() * 8) + float(y.amax())


def cut_to_longest(y: Tensor, lengths: Tensor) -> Tensor:
    return y[..., : max(lengths).item()]


def cut_to_lengths(y: Tensor, lengths: Tensor) -> Tensor:
    longest = int(torch.max(lengths))
    return y[..., :longest] * (torch.arange(longest)[None] < lengths[:, None])[:, None, None]


def in_pieces(y: Tensor, lengths: Tensor) -> Tensor:
    return torch.cat([piece.mul(2) for piece in y.split(lengths.tolist(), -1)], -1)


TAILS = [selected, boxes, mean, best, classes]
MIDDLES = [of_rows, picked_before_a_write, scaled]
OF_LENGTHS = [cut_to_longest, cut_to_lengths]


def flat(value: Any) -> list[Tensor]:
    return [torch.as_tensor(v) for v in (value if isinstance(value, tuple) else (value,))]


def assert_follows(model: nn.Module, pruned: nn.Module, *args: Tensor) -> None:
    """The pruned network answers as the masked original does, and learns the same."""
    plan = fxprune.report(pruned).plan
    assert plan is not None
    wanted = masked(model, plan.keep)
    for mode in (False, True):
        expected, given = wanted.train(mode)(*args), pruned.train(mode)(*args)
        for a, b in zip(flat(expected), flat(given), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    name, param = next(iter(pruned.named_parameters()))
    if any(t.requires_grad for t in flat(given)):
        pruned.zero_grad()
        for outputs in (expected, given):
            sum(t.square().sum() for t in flat(outputs) if t.requires_grad).backward()
        gradient = wanted.get_parameter(name).grad
        assert gradient is not None
        if (kept := plan.keep[name][0]) is not None:
            gradient = gradient[kept]
        torch.testing.assert_close(gradient, param.grad)


@pytest.mark.parametrize("function", [*TAILS, *MIDDLES], ids=lambda f: f.__name__)
def test_decisions_on_data_stay_decisions(function: Callable[..., Any]) -> None:
    model = Net(same, function) if function in TAILS else Net(function, same)
    ratio = 0.2 if function is picked_before_a_write else 0.4  # what is written under a mask keeps its width
    pruned = fxprune.compile(model.eval(), torch.randn(2, 3, 9, 9), ratio)
    report = fxprune.report(pruned)
    assert report.proof is not None
    assert report.achieved >= ratio
    for shape in ((1, 3, 9, 9), (5, 3, 9, 9), (3, 3, 12, 7)):
        assert_follows(model, pruned, torch.randn(shape))


@pytest.mark.parametrize("function", OF_LENGTHS, ids=lambda f: f.__name__)
def test_lengths_stay_data(function: Callable[..., Any]) -> None:
    model, x = Net(function, same).eval(), torch.randn(2, 3, 9, 9)
    pruned = fxprune.compile(model, (x, torch.tensor([7, 5])), 0.4)
    for lengths in ([7, 7], [2, 6], [3, 1]):
        assert_follows(model, pruned, x, torch.tensor(lengths))
    assert_follows(model, pruned, torch.randn(3, 3, 9, 9), torch.tensor([4, 4, 3]))


def test_pieces_of_other_lengths_are_cut_so_or_refused() -> None:
    model, x = Net(in_pieces, same).eval(), torch.randn(2, 3, 9, 9)
    pruned = fxprune.compile(model, (x, torch.tensor([3, 4])), 0.4)
    assert_follows(model, pruned, x, torch.tensor([5, 2]))
    with pytest.raises(AssertionError, match="made for"):
        pruned(x, torch.tensor([3, 2, 2]))


def guarded(y: Tensor) -> Tensor:
    return y.mean((1, 2, 3)) if y.sum() > 1e5 else y


def flipping(y: Tensor) -> Tensor:
    return y if y[..., 0].sum() > y[..., -1].sum() else -y


def counted(y: Tensor) -> Tensor:
    return torch.stack(list(y.flatten()[y.flatten() > 0]))


def test_an_unseen_branch_is_refused() -> None:
    model, x = Net(guarded, same).eval(), torch.randn(2, 3, 9, 9)
    pruned = fxprune.compile(model, x, 0.4)
    (row,) = fxprune.report(pruned).opaque
    assert "refused" in row.reason
    assert_follows(model, pruned, torch.randn(4, 3, 9, 9))
    with pytest.raises(AssertionError, match=r"test_live.py:\d+ took for the sample needs gt \(0 in the sample\)"):
        pruned(1e7 * x.abs())


def test_a_branch_that_other_values_leave_at_once_is_not_captured() -> None:
    with pytest.raises(fxprune.FxpruneError, match="move the lines"):
        fxprune.compile(Net(same, counted).eval(), torch.randn(2, 3, 9, 9), 0.4)


def test_branches_that_values_decide_have_a_graph_each() -> None:
    model = Net(same, flipping).eval()
    pruned = fxprune.compile(model, torch.randn(2, 3, 9, 9), 0.4)
    assert len(pruned.graphs) == 2
    for _ in range(4):
        assert_follows(model, pruned, torch.randn(3, 3, 9, 9))


class Chance(Net):
    """Values decide a size, and in training chance decides the way."""

    def forward(self, x: Tensor, *lengths: Tensor) -> Any:
        y = self.second(self.first(x))
        if self.training and torch.rand(()) < 0.5:
            y = y * 2
        return selected(self.last(y))


def test_random_decisions_in_training_leave_no_training_graph() -> None:
    model = Chance(same, same).eval()
    pruned = fxprune.compile(model, torch.randn(2, 3, 9, 9), 0.4)
    with pytest.raises(fxprune.errors.ModeError, match="decides by random numbers"):
        pruned.train()(torch.randn(2, 3, 9, 9))


def test_a_saved_network_reads_values_too(tmp_path: Path) -> None:
    model, x = Net(scaled, boxes).eval(), torch.randn(2, 3, 9, 9)
    pruned = fxprune.compile(model, x, 0.4)
    fxprune.save(pruned, tmp_path / "net")
    loaded = fxprune.load(tmp_path / "net")
    for a, b in zip(pruned(x), loaded(x), strict=True):
        assert torch.equal(a, b)


def by_chance(y: Tensor) -> Tensor:
    return y * 2 if torch.rand(()) > 0.5 else y


def by_chance_and_values(y: Tensor) -> Tensor:
    return y * 2 if torch.rand(()) > y.mean() * 0 + 0.5 else y


def test_random_numbers_alone_select_no_branch() -> None:
    with pytest.raises(fxprune.errors.CaptureError):
        fxprune.compile(Net(by_chance, same).eval(), torch.randn(2, 3, 8, 8), 0.3)


def test_random_numbers_and_values_decide_at_every_call() -> None:
    model = Net(by_chance_and_values, same).eval()
    x, refused = torch.randn(2, 3, 8, 8), 0
    pruned = fxprune.compile(model, x, 0.0)
    for seed in range(8):
        torch.manual_seed(seed)
        expected = model(x)
        torch.manual_seed(seed)
        try:
            found = pruned(x)
        except AssertionError:
            refused += 1
        else:
            torch.testing.assert_close(found, expected)
    assert refused < 8


def test_a_way_that_removal_changes_is_told_with_its_line_and_what_to_do() -> None:
    x, sums = torch.randn(2, 3, 8, 8), [0.0]

    def only_row(y: Tensor) -> Tensor:
        """One row of two, and none after removal."""
        rows = y[y.sum((1, 2, 3)) > sum(sums) / 2]
        if len(rows) != 1:
            raise ValueError
        return rows

    model = Net(only_row, same).eval()
    with torch.no_grad():
        sums = model.first(x).relu().sum((1, 2, 3)).tolist()
    with pytest.raises(fxprune.errors.ProofError, match=r"way that \S*test_live\.py:\d+ took.*; exclude the layers"):
        fxprune.compile(model, x, 0.4)


QUESTIONS: dict[str, Callable[[Tensor], bool]] = {
    "equal": lambda x: torch.equal(x, torch.zeros_like(x)),
    "a method": lambda x: x.equal(x * 2),
    "nearly equal": lambda x: torch.allclose(x, torch.zeros_like(x), atol=1e-3),
    "not zero": lambda x: not torch.is_nonzero(x.abs().sum()),
}


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_truth_values_that_torch_makes_of_all_values_are_checked(question: Callable[[Tensor], bool]) -> None:
    class Asking(Net):
        def forward(self, x: Tensor, *lengths: Tensor) -> Any:
            return self.last(self.first(x)) if question(x) else super().forward(x)

    torch.manual_seed(0)
    model = Asking(same, same).eval()
    pruned = fxprune.compile(model, torch.randn(2, 3, 6, 6), 0.3)
    plan = fxprune.report(pruned).plan
    assert plan is not None
    x = torch.randn(3, 3, 7, 5)
    torch.testing.assert_close(pruned(x), masked(model, plan.keep)(x))
    with pytest.raises(AssertionError, match="made for inputs of other values"):
        pruned(torch.zeros(2, 3, 6, 6))
