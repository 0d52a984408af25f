"""Modules called twice, tied tensors, and modules kept in containers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fxprune
from tests.capture.compiled import assert_equal_copy, pruned, vector


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        return self.last(self.shared(self.shared(x).relu()))


def test_a_module_called_twice() -> None:
    result = pruned(CalledTwice(), vector())
    first, second = result.shared.weight.shape
    assert first == second < 16


class UnderTwoNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.again = self.shared

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        return self.last(self.again(self.shared(x).relu()))


def test_a_module_under_two_names() -> None:
    result = pruned(UnderTwoNames(), vector())
    assert {"shared.weight", "last.weight"} <= set(result.state_dict())
    if hasattr(result, "again"):
        assert result.again.weight is result.shared.weight


class Tied(nn.Module):
    """A language model in small: the embedding is the classifier's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(11, 16), nn.Linear(16, 16)
        self.classifier = nn.Linear(16, 11, bias=False)
        self.classifier.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.hidden(self.embedding(tokens)).relu())


def test_tied_weights_stay_one_parameter() -> None:
    tokens = torch.randint(0, 11, (2, 5))
    result = pruned(Tied(), tokens)
    assert result.classifier.weight is result.embedding.weight
    assert result.embedding.weight.shape[1] < 16
    assert set(result.state_dict()) == set(Tied().state_dict())
    assert len(list(result.parameters())) == 3
    twin = copy.deepcopy(result)
    assert twin.classifier.weight is twin.embedding.weight


class TiedAcross(nn.Module):
    """A parameter that a leaf module and a functional call share, and one kept in a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.bias = nn.Linear(8, 16), nn.Parameter(torch.randn(8))
        self.middle, self.last = nn.Linear(16, 16), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.middle(self.encode(x).relu()).relu()
        return self.last(nn.functional.linear(hidden, self.encode.weight.t(), self.bias))


def test_a_weight_used_transposed_elsewhere() -> None:
    result = pruned(TiedAcross(), vector())
    assert result.encode.weight.shape[0] == result.middle.weight.shape[0] == result.middle.weight.shape[1]


class TiedBuffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        scale = torch.rand(16) + 0.5
        self.register_buffer("scale", scale)
        self.register_buffer("scale_again", scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.second(self.first(x) * self.scale) * self.scale_again)


def test_tied_buffers_stay_one_tensor() -> None:
    result = pruned(TiedBuffers(), vector())
    assert result.scale.shape == (result.first.weight.shape[0],) == (result.second.weight.shape[0],)
    if hasattr(result, "scale_again"):
        assert result.scale is result.scale_again


class Contained(nn.Module):
    """Modules and parameters in every container."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.ModuleDict({"up": nn.Linear(8, 16), "down": nn.Linear(16, 8)}) for _ in "ab"])
        self.scales = nn.ParameterList([nn.Parameter(torch.rand(16)) for _ in "ab"])
        self.shifts = nn.ParameterDict({"a": nn.Parameter(torch.rand(16)), "b": nn.Parameter(torch.rand(16))})
        self.blocks = [self.stages[0], self.stages[1]]
        self.last = nn.Sequential(nn.Linear(8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage, scale, shift in zip(self.blocks, self.scales, self.shifts.values(), strict=True):
            x = x + stage["down"]((stage["up"](x) * scale + shift).relu())
        return self.last(x)


def test_modules_and_parameters_in_containers() -> None:
    result = pruned(Contained(), vector())
    assert set(result.state_dict()) == set(Contained().state_dict())
    assert_equal_copy(Contained(), vector(), vector(5))


class Unused(nn.Module):
    """Parameters, buffers and modules that the forward does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.idle = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(5, 6)
        self.spare = nn.Parameter(torch.randn(7))
        self.register_buffer("idle_buffer", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu())


def test_unused_parts_change_nothing() -> None:
    result = pruned(Unused(), vector())
    assert {"first.weight", "last.weight"} <= set(result.state_dict())
    assert fxprune.report(result).parameters_after < fxprune.report(result).parameters_before


class Odd(nn.Module):
    """Names that are no identifiers, and one that a GraphModule has itself."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("0", nn.Linear(8, 16))
        self.add_module("with-dash", nn.Linear(16, 16))
        self.register_parameter("1", nn.Parameter(torch.rand(16)))
        self.input = nn.Linear(16, 16)
        self.torch = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = getattr(self, "0")(x).relu() * getattr(self, "1")
        return self.torch(self.input(getattr(self, "with-dash")(x).relu()).relu())


def test_odd_names() -> None:
    assert set(pruned(Odd(), vector()).state_dict()) == set(Odd().state_dict())


@pytest.mark.parametrize("name", ["class", "code", "graph", "meta", "print_readable"])
def test_names_that_mean_something_else_to_a_graph_module(name: str) -> None:
    model = nn.Sequential()
    model.add_module("first", nn.Linear(8, 16))
    model.add_module(name, nn.Linear(16, 4))
    assert list(pruned(model, vector()).state_dict()) == list(model.state_dict())
