"""Copies made by hand are those of ``copy.deepcopy``."""

from __future__ import annotations

import copy
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fxprune
from fxprune.util import copies
from fxprune.util.copies import copy_module, private_copy, share_elements


class Odd(nn.Module):
    """Attributes of many kinds, some of them shared."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.again = self.layer
        self.table = {"layer": self.layer, 1: [self.layer, (2, 3), {"deep": [4]}]}
        self.twice = [self.table["layer"], self.table]
        self.names = {"a", "b"}
        self.function: Callable[..., Any] = torch.relu
        self.array = torch.arange(3).numpy()
        self.register_buffer("steps", torch.zeros(2), persistent=False)
        self.layer.weight.requires_grad_(False)


class Special(nn.Linear):
    """Says itself how it is copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Special:
        twin = Special(self.in_features, self.out_features)
        twin.copied = True
        return twin


NETS: dict[str, Callable[[], nn.Module]] = {
    "odd": Odd,
    "recurrent": lambda: nn.LSTM(3, 4, 2),
    "attention": lambda: nn.MultiheadAttention(4, 2),
    "parametrised": lambda: parametrizations.weight_norm(nn.Linear(3, 4)),
    "inside": lambda: nn.Sequential(nn.Conv2d(1, 2, 3), Special(2, 3), nn.BatchNorm2d(2)),
}


@pytest.mark.parametrize("name", NETS)
def test_the_copy_is_that_of_deepcopy(name: str) -> None:
    net = NETS[name]()
    by_hand, usual = copy_module(net, {}), copy.deepcopy(net)
    assert repr(by_hand) == repr(usual)
    assert vars(by_hand).keys() == vars(usual).keys()
    for (path, tensor), (other_path, other) in zip(named(by_hand), named(usual), strict=True):
        assert path == other_path
        assert tensor.requires_grad == other.requires_grad
        assert type(tensor) is type(other)
    assert not {t.data_ptr() for _, t in named(by_hand)} & {t.data_ptr() for _, t in named(net)}


def named(net: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]


def test_what_is_shared_stays_shared() -> None:
    net = Odd()
    twin = copy_module(net, {})
    assert isinstance(twin, Odd)
    assert twin.layer is twin.again
    assert twin.table["layer"] is twin.layer
    assert twin.twice[1] is twin.table
    assert twin.table is not net.table
    assert twin.names == net.names
    assert twin.names is not net.names
    assert twin.array is not net.array


def test_what_takes_the_place_of_tensors_is_used() -> None:
    net = nn.Linear(2, 3)
    other = nn.Parameter(torch.zeros(5))
    assert copy_module(net, {id(net.weight): other}).weight is other


def test_a_class_that_says_how_it_is_copied_is_asked() -> None:
    assert copy_module(nn.Sequential(Special(2, 2)), {})[0].copied  # type: ignore[operator, index]


class Holding(nn.Module):
    """Holds a lock that its forward takes, one that it does not, and an open file."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)
        self.lock, self.locks = threading.Lock(), {"other": [threading.RLock()]}
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  held as long as the module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.lock:
            return self.last(torch.relu(self.first(x)))


def test_locks_and_files_that_a_module_holds() -> None:
    model = Holding().eval()
    pruned = fxprune.compile(model, torch.randn(2, 6), 0.5)
    assert pruned.get_parameter("first.weight").shape[0] < 16
    twin = private_copy(model)
    assert twin.lock is not model.lock
    assert twin.file.closed
    assert not model.file.closed
    model.file.close()


class Guard:
    """An object of no library, which holds what Python does not copy."""

    def __init__(self, owner: nn.Module) -> None:
        self.owner, self.lock, self.own = owner, threading.Lock(), (threading.Lock(), [1])


@pytest.mark.parametrize("make", [threading.Condition, threading.Event, lambda: threading.Semaphore(2)])
def test_what_threads_wait_for_is_made_anew(make: Callable[[], Any]) -> None:
    model = Holding().eval()
    model.thing, model.things = make(), {"more": [make()]}
    twin = private_copy(model)
    pruned = fxprune.compile(model, torch.randn(2, 6), 0.5)
    assert pruned.get_parameter("first.weight").shape[0] < 16
    assert twin.thing is not model.thing
    with twin.thing if hasattr(twin.thing, "acquire") else twin.lock:
        assert not hasattr(model.thing, "acquire") or model.thing.acquire(False)
    model.file.close()


def test_an_object_that_holds_the_module_a_library_and_a_lock() -> None:
    model = Holding().eval()
    model.guard, model.library = Guard(model), torch.nn.functional
    pruned = fxprune.compile(model, torch.randn(2, 6), 0.5)
    assert pruned.get_parameter("first.weight").shape[0] < 16
    twin = private_copy(model)
    assert twin.guard.owner is twin
    assert twin.guard.lock is not model.guard.lock
    assert twin.guard.own[1] is not model.guard.own[1]
    assert twin.library is torch.nn.functional
    model.file.close()


def test_what_cannot_be_copied_is_named() -> None:
    model = Holding().eval()
    model.held = {"numbers": [0, 1, 2], "more": (number for number in range(3))}
    with pytest.raises(fxprune.FxpruneError, match=r"cannot be copied .* because of held \(dict\)"):
        fxprune.compile(model, torch.randn(2, 6), 0.5)
    model.file.close()


class Closing(nn.Module):
    """Functions that hold the module, its layers or its containers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.gain = nn.Linear(6, 16), nn.Linear(16, 3), nn.Parameter(torch.rand(16) + 0.5)
        self.kept: dict[str, torch.Tensor] = {}
        kept = self.kept

        def keep(layer: nn.Module, given: Any, made: torch.Tensor) -> None:
            kept["first"] = made

        self.first.register_forward_hook(keep)
        self.act = lambda x: torch.relu(x) * self.gain
        self.steps = [lambda x, layer=layer: layer(x) for layer in (self.first, self.last)]

    def forward(self, x: torch.Tensor) -> Any:
        x = self.steps[0](x)
        return self.steps[1](self.act(x)), self.kept["first"].mean(1)


@pytest.mark.parametrize("ran", [False, True])
def test_functions_of_a_copy_hold_the_copy(ran: bool) -> None:
    model, x = Closing().eval(), torch.randn(2, 6)
    if ran:
        model(x)
    twin = private_copy(model)
    twin(x)[0].sum().backward()
    assert [p.grad is None for p in twin.parameters()] == [False] * 5
    assert all(p.grad is None for p in model.parameters())
    pruned = fxprune.compile(model, x, 0.5)
    before = [t.detach().clone() for t in model(x)]
    report = fxprune.report(pruned)
    assert report.plan is not None
    assert pruned.get_parameter("gain").shape[0] == pruned.get_parameter("first.weight").shape[0]
    kept = report.plan.keep["first.weight"][0]
    hidden = torch.relu(model.first(x))[:, kept] * model.gain[kept]
    torch.testing.assert_close(pruned(x)[0], nn.functional.linear(hidden, model.last.weight[:, kept], model.last.bias))
    pruned.train()(x)[0].sum().backward()
    assert pruned.get_parameter("gain").grad is not None
    torch.testing.assert_close([t.detach() for t in model(x)], before)


class Wrapper(nn.Module):
    """Calls what it wraps."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def test_modules_nested_two_hundred_deep() -> None:
    layer: nn.Module = nn.Linear(8, 8)
    for _ in range(200):
        layer = Wrapper(layer)
    before = sys.getrecursionlimit()
    pruned = fxprune.compile(nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 3)).eval(), torch.randn(2, 4), 0.5)
    assert pruned.get_parameter("0.weight").shape[0] < 8
    assert sys.getrecursionlimit() == before


@pytest.mark.parametrize("depth", [60, 200])
def test_deeply_nested_modules_are_exported(depth: int, tmp_path: Path) -> None:
    model: nn.Module = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    for _ in range(depth):
        model = nn.Sequential(model)
    pruned = fxprune.compile(model.eval(), torch.randn(2, 4), 0.5)
    fxprune.export(pruned, tmp_path / "net.pt2")
    x = torch.randn(5, 4)
    torch.testing.assert_close(torch.export.load(tmp_path / "net.pt2").module()(x), pruned(x))


def test_contiguous_tensors_are_compared_by_their_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tied embedding has tens of millions of them."""
    whole = torch.zeros(6, 4)
    assert not share_elements(whole[:, :2], whole[:, 2:])
    assert share_elements(whole[:, :3], whole[:, 2:])
    monkeypatch.setattr(copies, "_bytes_of", None)
    assert share_elements(whole, whole[2:])
    assert not share_elements(whole[:2], whole[2:])
