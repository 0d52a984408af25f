"""Entries of dicts and keywords in another order than the sample's."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune

A, B = torch.randn(2, 6), torch.randn(2, 6)


class Chain(nn.Module):
    """Reads its entries one after another: the earlier an entry comes, the deeper it goes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 2)

    def entries(self, values: Any) -> torch.Tensor:
        h = torch.zeros(())
        for value in values:
            h = torch.tanh(self.first(value + h))
        return self.last(h)


class Keywords(Chain):
    def forward(self, **values: torch.Tensor) -> torch.Tensor:
        return self.entries(values.values())


class Entries(Chain):
    def forward(self, values: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.entries(values.values())


class Nested(Chain):
    def forward(self, values: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        return self.entries(values[0].values())


class Named(Chain):
    """Reads its entries by name."""

    def forward(self, values: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.entries([values["a"], values["b"]])


CALLS = {
    "keywords": (Keywords(), lambda values: ((), values)),
    "entries": (Entries(), lambda values: ((values,), {})),
    "nested": (Nested(), lambda values: (([values],), {})),
}


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", CALLS)
def test_another_order_is_refused_where_the_forward_goes_by_it(name: str, train: bool, tmp_path: Path) -> None:
    model, arguments = CALLS[name]
    args, kwargs = arguments({"a": A, "b": B})
    pruned = fxprune.compile(model, kwargs or args, 0.0).train(train)
    original = copy.deepcopy(model).train(train)
    fxprune.save(pruned, tmp_path / "net")
    for network in (pruned, fxprune.load(tmp_path / "net").train(train)):
        args, kwargs = arguments({"a": A[:1], "b": B[:1]})
        torch.testing.assert_close(network(*args, **kwargs), original(*args, **kwargs))
        args, kwargs = arguments({"b": B[:1], "a": A[:1]})
        with pytest.raises(AssertionError, match="in the sample's order, a, b"):
            network(*args, **kwargs)


def test_another_order_is_taken_where_entries_are_read_by_name() -> None:
    model = Named()
    pruned = fxprune.compile(model, ({"a": A, "b": B},), 0.0)
    torch.testing.assert_close(pruned({"b": B, "a": A}), model({"a": A, "b": B}))
