"""One tensor in two places of the inputs, and lists and dicts that a forward changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import CaptureError

A, B = torch.randn(2, 6), torch.randn(2, 6)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 2)

    def both(self, x: Tensor, y: Tensor, alike: bool) -> Tensor:
        return self.last(self.first(x) if alike else self.first(x) * self.first(y))


class Asks(Pair):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.both(x, y, x is y)


class AsksInTraining(Pair):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.both(x, y, self.training and x is y)


class AsksEntries(Pair):
    def forward(self, values: dict[str, list[Tensor]]) -> Tensor:
        return self.both(values["x"][0], values["y"][0], values["x"][0] is values["y"][0])


class AsksIfShort(Pair):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.both(x, y, len(x) < 4 and x is y)


class AsksIfPositive(Pair):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.both(x, y, bool(x.sum() > 0) and x is y)


class Packs(Pair):
    """Takes another way for one tensor, which leads to the same values."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if x is y:
            left, right = self.first(torch.cat([x, y])).chunk(2)
        else:
            left, right = self.first(x), self.first(y)
        return self.last(left * right)


class Writes(Pair):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x.mul_(2)
        return self.both(x, y, False)


@pytest.mark.parametrize(
    ("model", "asking"), [(Asks(), (False, True)), (AsksInTraining(), (True,)), (AsksEntries(), (False, True))]
)
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_one_tensor_is_refused_where_the_forward_asks_for_it(
    model: nn.Module, asking: tuple[bool, ...], train: bool, tmp_path: Path
) -> None:
    def arguments(x: Tensor, y: Tensor) -> tuple[Any, ...]:
        return ({"x": [x], "y": [y]},) if isinstance(model, AsksEntries) else (x, y)

    pruned = fxprune.compile(model.eval(), arguments(A, B), 0.0)
    fxprune.save(pruned, tmp_path / "net")
    for network in (pruned, fxprune.load(tmp_path / "net")):
        network.train(train)
        torch.testing.assert_close(network(*arguments(A, B)), model.train(train)(*arguments(A, B)))
        with pytest.raises(AssertionError, match="calls with two tensors as .*, as its forward asks"):
            network(*arguments(A, A))
    assert train in asking or isinstance(model, AsksInTraining)


@pytest.mark.parametrize(
    ("model", "sample", "other"),
    [(AsksIfShort(), torch.randn(6, 6), A), (AsksIfPositive(), -A.abs(), A.abs())],
    ids=["by size", "by value"],
)
def test_every_branch_is_asked_whether_it_asks(model: nn.Module, sample: Tensor, other: Tensor) -> None:
    """The question may be in the branch of another sample alone."""
    model.eval()
    pruned = fxprune.compile(model, (sample, sample.clone()), 0.0, other_samples=[(other, other.clone())])
    for given in (sample, other):
        torch.testing.assert_close(pruned(given, given.clone()), model(given, given.clone()))
    assert not torch.allclose(model(other, other), model(other, other.clone()))
    with pytest.raises(AssertionError, match="calls with two tensors as x and y, as its forward asks"):
        pruned(other, other)
    with pytest.raises(CaptureError, match="the sample gives one tensor for several arguments"):
        fxprune.compile(model, (sample, sample.clone()), 0.0, other_samples=[(other, other)])


def test_a_sample_of_one_tensor_is_refused_where_the_forward_asks_for_it() -> None:
    with pytest.raises(CaptureError, match="the sample gives one tensor for several arguments"):
        fxprune.compile(Asks(), (A, A), 0.5)


@pytest.mark.parametrize("model", [Packs(), Writes()])
@pytest.mark.parametrize("second", [A, B], ids=["one", "two"])
def test_one_tensor_is_taken_where_it_makes_no_difference(model: nn.Module, second: Tensor) -> None:
    pruned = fxprune.compile(model, (A, second), 0.0)
    for x, y in ((A, B), (A, A)):
        given, again = x.clone(), x.clone()
        answer = pruned(given, given if y is x else y)
        torch.testing.assert_close(answer, model(again, again if y is x else y))


class Fills(Pair):
    """Takes an entry out of a dict and puts others in."""

    def forward(self, values: dict[str, Tensor]) -> Tensor:
        x = values.pop("x").mul_(2)
        values["features"] = self.first(x)
        values["y"] = values["y"] + 1
        return self.last(values["features"]) + values["y"]


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, values: dict[str, Tensor]) -> Tensor:
        values["x"] = self.inside(values["x"])
        return values["x"]


class FillsInside(Pair):
    """The forward itself cannot be traced; a part gives back its result in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Part()

    def forward(self, x: Tensor) -> Tensor:
        values = {"x": self.first(x)}
        self.part(values)
        return self.last(values["x"]) * float(x.numpy(force=True).mean() > 0)


@pytest.mark.parametrize("verify", [True, "full", False])
def test_a_change_of_a_given_dict_is_reported_and_stays_in_the_original(verify: Any) -> None:
    model, values = Fills(), {"x": A.clone(), "y": B[:, :2].clone()}
    pruned = fxprune.compile(model, (values,), 0.0, verify=verify)
    assert [row.name for row in fxprune.report(pruned).opaque] == ["lists and dicts among the arguments"]
    assert [*values] == ["x", "y"]
    assert torch.equal(values["x"], A)
    expected = model({name: value.clone() for name, value in values.items()})
    torch.testing.assert_close(pruned(values), expected)
    assert [*values] == ["x", "y"]


def test_a_part_that_gives_its_result_in_a_dict_is_no_graph() -> None:
    model = FillsInside()
    pruned = fxprune.compile(model, A, 0.3)
    graphs = [name for name, module in pruned.named_modules() if isinstance(module, torch.fx.GraphModule)]
    assert graphs == ["part.inside"]
    assert pruned(B).shape == (2, 2)
