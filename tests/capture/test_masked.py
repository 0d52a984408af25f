"""Writes under a mask of values, and ``Variable`` around tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Variable

import fxprune
from tests.nets.oracles import masked


class Tokens(nn.Module):
    """Writes one token wherever a mask, which the input gives, is True."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.token = nn.Linear(6, 16), nn.Linear(16, 4), nn.Parameter(torch.randn(16))
        self.turned = turned

    def forward(self, x: Tensor) -> Tensor:
        h, mask = self.first(x).clone(), x[..., 0] > 0
        if self.turned:
            h[torch.where(~mask)] = -self.token
        h[mask] = self.token
        out: Tensor = self.last(h.relu())
        return out


class Middle(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.middle = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), middle

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.middle(self.first(x)))
        return out


def copied(y: Tensor) -> Tensor:
    d, k = torch.zeros_like(y), y > 0
    d[k] = y[k]
    return d


def both_sides(y: Tensor) -> Tensor:
    d, k = torch.zeros_like(y), y > 0
    d[~k] = y[~k] / 4
    d[k] = -y[k]
    return d


def in_place(y: Tensor) -> Tensor:
    y = y.clone()
    y[y < 0.1] *= 0.25
    return y


def at_places(y: Tensor) -> Tensor:
    d, places = torch.zeros_like(y), torch.where(y > 0)
    d[places] = y[places] * 2
    return d


def at_unpacked_places(y: Tensor) -> Tensor:
    d, (row, channel, up, along) = y.clone(), torch.nonzero(y.relu(), as_tuple=True)
    d[row, channel, up, along] += 1
    return d


def in_rows_that_are_told(y: Tensor) -> Tensor:
    d, (rows,) = y.clone(), torch.where(y.sum((1, 2, 3)) > 0)
    d[rows] = 0
    return d


def one_number(y: Tensor) -> Tensor:
    y = y.clone()
    y[y < 0.1] = -1.0
    return y


def behind_an_ellipsis(y: Tensor) -> Tensor:
    y = y.clone()
    y[..., y.mean((0, 1)) > 0] = torch.tensor(0.5)
    return y


def between_slices(y: Tensor) -> Tensor:
    y = y.clone()
    y[:, y.mean((0, 2, 3)) > 0, :] = 0
    return y


def two_sums(y: Tensor) -> Tensor:
    d, k = torch.zeros_like(y), y > 0
    d[k] = y[k] + (y * 2)[k]
    return d


def over_rows(y: Tensor) -> Tensor:
    d, k = torch.zeros_like(y), y.mean((1, 2, 3)) > 0
    d[k] = y[k]
    return d


MIDDLES = [
    copied, both_sides, in_place, two_sums, at_places, at_unpacked_places, in_rows_that_are_told, one_number,
    between_slices, behind_an_ellipsis,
]  # fmt: skip


@pytest.mark.parametrize("middle", MIDDLES)
def test_what_a_mask_picks_and_writes_is_a_where(middle: Callable[[Tensor], Tensor]) -> None:
    model, x = Middle(middle).eval(), torch.randn(2, 3, 9, 9)
    pruned = fxprune.compile(model, x, 0.5)
    report = fxprune.report(pruned)
    assert not report.opaque
    assert report.plan is not None
    x = torch.randn(5, 3, 12, 9)
    torch.testing.assert_close(pruned(x), masked(model, report.plan.keep)(x))


@pytest.mark.parametrize("turned", [False, True])
def test_a_token_that_a_mask_writes_shrinks_with_the_channels(turned: bool) -> None:
    model, x = Tokens(turned).eval(), torch.randn(2, 5, 6)
    pruned = fxprune.compile(model, x, 0.5)
    plan = fxprune.report(pruned).plan
    assert plan is not None
    assert pruned.token.shape[0] == pruned.first.out_features < 16
    wanted, x = masked(model, plan.keep), torch.randn(3, 7, 6)
    for network in (wanted, pruned):
        network(x).square().sum().backward()
    torch.testing.assert_close(pruned(x), wanted(x))
    (kept,) = plan.keep["token"]
    torch.testing.assert_close(pruned.token.grad, wanted.token.grad[torch.as_tensor(kept)])


def test_places_of_a_mask_that_was_written_to_since_are_numbers() -> None:
    def middle(y: Tensor) -> Tensor:
        d, mask = y.clone(), y > 0
        places = torch.where(mask)
        mask[:] = False
        d[places] = 0
        return d

    model, x = Middle(middle).eval(), torch.randn(2, 3, 9, 9)
    pruned = fxprune.compile(model, x, 0.0)
    assert any(row.reason == "it gives positions as numbers" for row in fxprune.report(pruned).pinned)
    torch.testing.assert_close(pruned(x), model(x))


def scaled_by_itself(y: Tensor) -> Tensor:
    y = y.clone()
    y[y > 0] *= y[y > 0]
    return y


def changed_through_a_view(y: Tensor) -> Tensor:
    y, k = y.clone(), y > 0
    entries = y[k]
    entries.view(-1)[1:].zero_()
    y[k] = entries
    return y


@pytest.mark.parametrize("middle", [scaled_by_itself, changed_through_a_view], ids=lambda middle: middle.__name__)
def test_entries_that_were_changed_before_they_are_written_back_count_as_changed(
    middle: Callable[[Tensor], Tensor],
) -> None:
    torch.manual_seed(0)
    model = Middle(middle).eval()
    result = fxprune.compile(model, torch.randn(2, 3, 8, 8), 0.0)
    for batch in (1, 5):
        x = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(result(x), model(x))


def test_gradients_pass_what_a_mask_over_rows_picks() -> None:
    model, x = Middle(over_rows).eval(), torch.randn(6, 3, 9, 9)
    pruned = fxprune.compile(model, x, 0.0)
    for network in (model, pruned):
        network(x).square().sum().backward()
    assert model.first.weight.grad is not None
    torch.testing.assert_close(pruned.get_parameter("first.weight").grad, model.first.weight.grad)


def imported_there(y: Tensor) -> Tensor:
    from torch.autograd import Variable as Other

    return y + Other(torch.zeros(y.size(0), 8, 1, 1)) * Other(y)


VARIABLES: dict[str, Callable[[Tensor], Tensor]] = {
    "by name": lambda y: y + Variable(torch.zeros(y.size(0), 8, 1, 1)),
    "by path": lambda y: y * torch.autograd.Variable(y),
    "imported there": imported_there,
    "asked": lambda y: y if isinstance(y, torch.autograd.Variable) else y * 2,
}


@pytest.mark.parametrize("name", VARIABLES)
def test_a_variable_is_a_tensor_without_history(name: str) -> None:
    model, x = Middle(VARIABLES[name]).eval(), torch.randn(2, 3, 9, 9)
    pruned = fxprune.compile(model, x, 0.0)
    for network in (model, pruned):
        network(x).square().sum().backward()
    torch.testing.assert_close(pruned(x), model(x))
    torch.testing.assert_close(pruned.get_parameter("first.weight").grad, model.first.weight.grad)
