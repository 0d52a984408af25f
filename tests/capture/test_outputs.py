"""Every kind of output structure comes back as it was."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections import OrderedDict, namedtuple
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import FxpruneError
from tests.capture.compiled import assert_equal_copy, pruned, vector


class Trunk(nn.Module):
    """A trunk with two heads; subclasses say how the outputs are wrapped."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 3), nn.Linear(16, 4)

    def heads(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.trunk(x).relu()
        return self.first(hidden), self.second(hidden)


class InTuple(Trunk):
    def forward(self, x: torch.Tensor) -> Any:
        return self.heads(x)


class InList(Trunk):
    def forward(self, x: torch.Tensor) -> Any:
        return list(self.heads(x))


class InDict(Trunk):
    def forward(self, x: torch.Tensor) -> Any:
        first, second = self.heads(x)
        return {"out": first, "aux": second, "none": None, "number": 3, "name": "trunk"}


class InNested(Trunk):
    def forward(self, x: torch.Tensor) -> Any:
        first, second = self.heads(x)
        return {"pair": (first, [second, first]), "deep": {"x": second}}


class InOrderedDict(Trunk):
    def forward(self, x: torch.Tensor) -> Any:
        first, second = self.heads(x)
        return OrderedDict([("out", first), ("aux", second)])


class Made(NamedTuple):
    out: torch.Tensor
    aux: torch.Tensor | None = None


Old = namedtuple("Old", "out aux")


class InNamedTuple(Trunk):
    def forward(self, x: torch.Tensor) -> Any:
        return Made(*self.heads(x))


class InOldNamedTuple(Trunk):
    def forward(self, x: torch.Tensor) -> Any:
        first, second = self.heads(x)
        return Old(aux=second, out=first)


@dataclasses.dataclass
class Output:
    out: torch.Tensor
    aux: torch.Tensor | None = None
    size: int = 0


class InDataclass(Trunk):
    def forward(self, x: torch.Tensor) -> Any:
        first, second = self.heads(x)
        return Output(out=first, aux=second, size=3)


def test_tuples_and_lists() -> None:
    assert type(pruned(InTuple(), vector())(vector())) is tuple
    assert type(pruned(InList(), vector())(vector())) is list


def test_dicts_with_more_than_tensors() -> None:
    out = pruned(InDict(), vector())(vector(5))
    assert list(out) == ["out", "aux", "none", "number", "name"]
    assert (out["none"], out["number"], out["name"]) == (None, 3, "trunk")


def test_nested_outputs() -> None:
    pruned(InNested(), vector())
    assert_equal_copy(InNested(), vector(), vector(5))


def test_ordered_dicts() -> None:
    out = pruned(InOrderedDict(), vector())(vector(5))
    assert isinstance(out, OrderedDict)
    assert list(out) == ["out", "aux"]


def test_named_tuples() -> None:
    assert type(pruned(InNamedTuple(), vector())(vector(5))) is Made
    out = pruned(InOldNamedTuple(), vector())(vector(5))
    assert type(out) is Old
    assert (out.out.shape, out.aux.shape) == ((5, 3), (5, 4))


def test_dataclasses() -> None:
    out = pruned(InDataclass(), vector())(vector(5))
    assert type(out) is Output
    assert (out.out.shape, out.size) == ((5, 3), 3)
    assert out.aux is not None
    assert out.aux.shape == (5, 4)


def test_an_output_given_twice_and_an_input_handed_back() -> None:
    class Echo(Trunk):
        def forward(self, x: torch.Tensor) -> Any:
            first, _ = self.heads(x)
            return first, first, x

    result = pruned(Echo(), vector())
    x = vector(3)
    first, again, same = result(x)
    assert first is again
    assert same is x


def test_a_size_among_the_outputs() -> None:
    class Sized(Trunk):
        def forward(self, x: torch.Tensor) -> Any:
            first, _ = self.heads(x)
            return first, x.shape[0]

    result = pruned(Sized(), vector())
    assert result(vector(5))[1] == 5


def test_a_parameter_among_the_outputs_keeps_its_width() -> None:
    class Shown(Trunk):
        def forward(self, x: torch.Tensor) -> Any:
            first, second = self.heads(x)
            return first, second, self.first.weight

    result = pruned(Shown(), vector(), ratio=0.0)
    assert result(vector())[2].shape == (3, 16)


class Cache:
    """An object of a class of its own, with tensors in objects in a list, and a number that follows the input."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.kind = torch.float32
        self.length = 0


class Layer:
    def __init__(self, keys: torch.Tensor) -> None:
        self.keys = keys
        self.shared = [keys]


class InObject(Trunk):
    def forward(self, x: torch.Tensor) -> Any:
        first, second = self.heads(x)
        cache = Cache()
        cache.layers += [Layer(first), Layer(second)]
        cache.length = x.shape[0]
        return {"out": first, "cache": cache}


def test_objects_that_hold_tensors_are_made_again() -> None:
    result = fxprune.compile(InObject(), vector(), 0.3)
    copies = (result, copy.deepcopy(result), pickle.loads(pickle.dumps(result)))
    for batch in (2, 5):
        found = [module(vector(batch)) for module in copies]
        for output in found:
            cache = output["cache"]
            assert type(cache) is Cache
            assert (cache.kind, cache.length) == (torch.float32, batch)
            assert [layer.keys.shape for layer in cache.layers] == [(batch, 3), (batch, 4)]
            assert cache.layers[0].keys is output["out"]
            assert cache.layers[0].shared[0] is output["out"]
        assert len({id(output["cache"]) for output in found}) == len(found)
    x = vector()
    full, copied = InObject(), None
    copied = fxprune.compile(full, x, 0.0)
    assert torch.equal(copied(x)["cache"].layers[1].keys, full(x)["cache"].layers[1].keys)


def test_an_iterator_among_the_outputs_is_refused() -> None:
    class Lazily(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> Any:
            return (self.last(self.first(x)) for _ in range(1))

    with pytest.raises(FxpruneError, match="an iterator"):
        fxprune.compile(Lazily(), torch.randn(2, 8), 0.3)
