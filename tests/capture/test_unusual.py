"""Networks that nobody planned for are proven, and train as the original does; what cannot be served is refused."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxprune
from fxprune.errors import FxpruneError
from tests.capture.compiled import pruned
from tests.capture.unusual import BETWEEN, Net


@pytest.mark.parametrize("name", BETWEEN)
def test_pruned_and_proven_and_equal_in_training(name: str) -> None:
    torch.manual_seed(0)
    model, x = Net(BETWEEN[name]).eval(), torch.randn(2, 3, 8, 8)
    report = fxprune.report(fxprune.compile(model, x, 0.35, budget="channels"))
    assert report.opaque == ()
    assert report.proof is not None
    assert not [note for note in report.proof.notes if "differs" in note]
    twin, original, other = fxprune.compile(model, x, 0.0, verify=False).train(), deepcopy(model).train(), x[:1] + 1
    for given in (x, other):
        torch.manual_seed(1)
        expected = original(given)
        torch.manual_seed(1)
        torch.testing.assert_close(twin(given), expected)
    for buffer, values in twin.named_buffers():
        if buffer in dict(original.named_buffers()):
            torch.testing.assert_close(values, original.get_buffer(buffer))
    assert _gradients(twin, x) == _gradients(original, x)


def _gradients(model: nn.Module, x: Tensor) -> set[str]:
    model.zero_grad()
    model(x).sum().backward()
    return {name for name, p in model.named_parameters() if p.grad is not None}


class Remembering(nn.Module):
    """Adds what its last call left behind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.previous = nn.Linear(8, 12), nn.Linear(12, 4), None

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        total = h if self.previous is None else h + self.previous
        self.previous = h.detach()
        return self.last(total)


class Noting(Remembering):
    """Keeps what its last call gave, but does not read it."""

    def forward(self, x: Tensor) -> Tensor:
        self.previous = self.first(x)
        return self.last(self.previous)


def test_state_between_calls_that_changes_results_is_refused() -> None:
    x = torch.randn(2, 8)
    with pytest.raises(FxpruneError, match=r"keeps previous for its next call"):
        fxprune.compile(Remembering().eval(), x, 0.3)
    assert fxprune.compile(Noting().eval(), x, 0.3)(x).shape == (2, 4)


class Refused(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.first, self.last, self.way = nn.Linear(8, 12), nn.Linear(12, 4), way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                return self.last(self.first(x)).float()
        if self.way == "vmap":
            return self.last(
                torch.func.vmap(lambda row: row.tanh() @ self.last.weight.mT @ self.last.weight)(self.first(x))
            )
        if self.way == "replaced parameter":
            self.first.bias = nn.Parameter(torch.zeros(12))
            return self.last(self.first(x))
        return self.last(checkpoint(self.first, x, use_reentrant=True))


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("autocast", "autocast"),
        ("vmap", "cannot be watched"),
        ("reentrant", "custom autograd function cannot be watched"),
        ("replaced parameter", "replaces first.bias"),
    ],
)
def test_what_a_graph_cannot_express_is_refused_with_the_reason(way: str, reason: str) -> None:
    with pytest.raises(FxpruneError, match=reason):
        fxprune.compile(Refused(way).eval(), torch.randn(2, 8), 0.3)


class Cached(nn.Module):
    """A table of the rows in a buffer, made anew for another height; ``grows``: it takes in what it is given."""

    def __init__(self, grows: bool = False) -> None:
        super().__init__()
        self.first, self.last, self.grows = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), grows
        self.register_buffer("table", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.grows:
            self.table = torch.cat([self.table, h.mean((1, 2, 3))])
        elif self.table.shape[0] != h.shape[2]:
            self.table = torch.arange(h.shape[2], dtype=h.dtype, device=h.device).sqrt()
        return self.last(h * self.table.sum() + self.table.mean())


def test_a_buffer_that_is_a_cache_is_made_anew_by_the_graph() -> None:
    model = Cached().eval()
    result = fxprune.compile(model, torch.randn(2, 3, 6, 6), 0.0)
    for height in (6, 9, 4, 6):
        x = torch.randn(2, 3, height, 5)
        torch.testing.assert_close(result(x), model(x))
    again = pruned(model, torch.randn(2, 3, 6, 6), 0.3)  # now it holds the table
    assert again(torch.randn(1, 3, 6, 8)).shape == (1, 4, 6, 8)


def test_a_buffer_that_grows_is_refused() -> None:
    with pytest.raises(FxpruneError, match="keeps table for its next call"):
        fxprune.compile(Cached(grows=True), torch.randn(2, 3, 6, 6), 0.3)


def test_a_function_that_is_an_argument_of_an_operation_is_refused() -> None:
    class Mapping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).detach().clone().apply_(lambda value: 2 * value))

    with pytest.raises(FxpruneError, match="passes a function to an operation"):
        fxprune.compile(Mapping(), torch.randn(2, 8), 0.3)
