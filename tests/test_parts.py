"""What stands where a container stood: it is read as before, and what would never run on it is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import ModelError
from fxprune.util.modes import CALLS, switch


class Staged(nn.Module):
    """A Sequential, a ModuleList and a ModuleDict."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Identity(), nn.ReLU(), nn.Conv2d(16, 16, 3))
        self.rest = nn.ModuleList([nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 1)])
        self.heads = nn.ModuleDict({"a": nn.Conv2d(8, 2, 1), "b": nn.Conv2d(8, 3, 1)})

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.stage(x)
        for layer in self.rest:
            x = layer(x).relu()
        return [head(x) for head in self.heads.values()]


@pytest.fixture(scope="module")
def pruned() -> nn.Module:
    return fxprune.compile(Staged().eval(), torch.randn(2, 3, 12, 12), 0.4)


def _forms(pruned: nn.Module, folder: Path) -> list[nn.Module]:
    fxprune.save(pruned, folder / "net")
    return [pruned, copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned)), fxprune.load(folder / "net")]


def test_parts_are_indexed_and_iterated_as_before(pruned: nn.Module, tmp_path: Path) -> None:
    for network in _forms(pruned, tmp_path):
        stage, rest, heads = (network.get_submodule(name) for name in ("stage", "rest", "heads"))
        assert isinstance(stage, nn.Sequential)
        assert isinstance(rest, nn.ModuleList)
        assert isinstance(heads, nn.ModuleDict)
        assert isinstance(stage[0], nn.Conv2d)
        assert stage[3] is stage[-1] is list(stage)[-1]  # type: ignore[index, call-overload]
        assert [layer.out_channels for layer in rest] == [layer.out_channels for layer in rest[:]]  # type: ignore
        assert len(rest) == 2  # type: ignore[arg-type]
        assert list(heads.keys()) == ["a", "b"]  # type: ignore[operator]
        assert heads["b"].out_channels == 3  # type: ignore[index]
        assert "a" in heads
        some = stage[1:]
        assert isinstance(some, nn.Sequential)
        assert [name for name, _ in some.named_children()] == [name for name, _ in stage.named_children()][1:]


def test_parts_can_be_replaced(pruned: nn.Module) -> None:
    network, x = copy.deepcopy(pruned), torch.randn(2, 3, 12, 12)
    rest = network.get_submodule("rest")
    rest[-1] = nn.Sequential(rest[-1], nn.Hardtanh(-1e-3, 1e-3))  # type: ignore[index, operator]
    assert not torch.equal(network(x)[0], pruned(x)[0])
    with pytest.raises(KeyError):
        rest["7"] = nn.ReLU()  # type: ignore[operator]
    for change in (lambda: rest.append(nn.ReLU()), lambda: rest.insert(0, nn.ReLU()), lambda: rest.pop(0)):  # type: ignore
        with pytest.raises(ModelError, match="more or less"):
            change()
    with pytest.raises(ModelError, match="more or less"):
        del rest[0]  # type: ignore[operator]


class Weights(nn.Module):
    """Parameters in a list and a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ParameterList([torch.randn(12, 8), torch.randn(12, 12), torch.randn(4, 12)])
        self.shifts = nn.ParameterDict({"first": torch.randn(12), "last": torch.randn(4)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.linear(x, self.layers[0], self.shifts["first"]).relu()
        x = nn.functional.linear(x, self.layers[1]).relu()
        return nn.functional.linear(x, self.layers[2], self.shifts["last"])


def test_lists_of_parameters_are_read_as_before(tmp_path: Path) -> None:
    for network in _forms(fxprune.compile(Weights().eval(), torch.randn(3, 8), 0.4), tmp_path):
        layers, shifts = network.get_submodule("layers"), network.get_submodule("shifts")
        assert isinstance(layers, nn.ParameterList)
        assert isinstance(shifts, nn.ParameterDict)
        assert [tuple(weight.shape) for weight in layers][-1][0] == len(shifts["last"]) == 4
        assert len(layers) == 3


def test_hooks_and_parts_that_would_never_run_are_refused(pruned: nn.Module, tmp_path: Path) -> None:
    for network in _forms(pruned, tmp_path):
        stage = network.get_submodule("stage")
        for register in (
            stage.register_forward_hook,
            stage.register_forward_pre_hook,
            stage.register_full_backward_hook,
        ):
            with pytest.raises(ModelError, match="hook"):
                register(print)
        with pytest.raises(ModelError, match="not called"):
            stage(torch.randn(2, 3, 12, 12))


def test_a_hook_on_a_layer_inside_fires(pruned: nn.Module) -> None:
    network, seen = copy.deepcopy(pruned), []
    network.get_submodule("stage.3").register_forward_hook(lambda *call: seen.append(call[2].shape))
    network(torch.randn(2, 3, 12, 12))
    assert len(seen) == 1


def test_printing_a_pruned_network_says_what_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    pruned = fxprune.compile(model, torch.randn(1, 3, 8, 8), 0.5)
    assert "pruned by fxprune: 50.0% of macs removed" in repr(pruned)


class _Aside(nn.Module):
    """Has a part that is none of its children, which ``train`` therefore does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Dropout())

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        return iter(())

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        return iter(())


class _Frozen(nn.BatchNorm2d):
    def train(self, mode: bool = True) -> _Frozen:
        return super().train(False)


class _Counts(nn.Dropout):
    """Sees each time that its mode is set."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        vars(self)["times"] = vars(self).get("times", 0) + (name == "training")


class _Inverted(nn.Dropout):
    @property
    def training(self) -> bool:
        return not vars(self)["is_on"]

    @training.setter
    def training(self, mode: bool) -> None:
        vars(self)["is_on"] = not mode


@pytest.mark.parametrize("odd", [nn.Dropout, _Aside, lambda: _Frozen(2), _Counts, _Inverted])
@pytest.mark.parametrize("around", [nn.Identity, nn.Sequential])
@pytest.mark.parametrize("call", CALLS)
def test_switching_a_network_does_what_its_own_calls_do(
    odd: Callable[[], nn.Module], around: Callable[..., nn.Module], call: str
) -> None:
    part = odd()
    network = nn.Sequential(nn.Linear(2, 2), around(part) if around is nn.Sequential else part, part, nn.Dropout())
    twin = copy.deepcopy(network)
    for training in (True, False):
        for module in (network, twin):
            module.train(training)
        switch(network, call)
        twin.train() if call == "train" else twin.train(False) if call == "train(False)" else twin.eval()
        assert _modes(network) == _modes(twin)


def _modes(module: nn.Module) -> list[Any]:
    """The mode of a module and of all that it holds, and how often it was set where that is counted."""
    own = [module.training, vars(module).get("times")]
    return own + [mode for part in module._modules.values() if part is not None for mode in _modes(part)]


class Shared(nn.Module):
    """Parts, a container, a parameter and a buffer under several names, two of them called under a later one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 16)
        self.tied = self.first.weight
        self.middle = nn.Linear(16, 16)
        self.again = self.middle
        self.norm = nn.BatchNorm1d(16)
        self.other_norm = self.norm
        self.box = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
        self.other_box = self.box
        self.chosen = nn.ModuleDict({"inner": self.box[0]})
        self.heads = nn.ModuleList([nn.Linear(16, 3)] * 3)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        hidden = self.again(self.middle(self.first(x).relu()).relu())
        hidden = self.chosen["inner"](self.other_box(self.other_norm(hidden))).relu()
        return [head(hidden) for head in self.heads]


def names_of(network: nn.Module) -> dict[str, list[str]]:
    lists: dict[str, Iterable[tuple[str, object]]] = {
        "state": network.state_dict().items(),
        "parameters": network.named_parameters(),
        "all parameters": network.named_parameters(remove_duplicate=False),
        "buffers": network.named_buffers(remove_duplicate=False),
        "modules": network.named_modules(remove_duplicate=False),
    }
    return {kind: [name for name, _ in found] for kind, found in lists.items()}


def test_parts_keep_all_of_their_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Shared().eval(), torch.randn(4, 6)
    pruned = fxprune.compile(model, x, 0.5)
    fxprune.save(pruned, tmp_path / "net")
    loaded = fxprune.load(tmp_path / "net")
    again = fxprune.compile(loaded, x, 0.2)
    for network in (pruned, loaded, again, copy.deepcopy(loaded), pickle.loads(pickle.dumps(pruned))):
        assert names_of(network) == names_of(model)
        assert network.again is network.middle
        assert network.other_box is network.box
        assert network.chosen["inner"] is network.box[0]
        assert network.tied is network.first.weight
        assert len(network.heads) == 3
        assert network.heads[2] is network.heads[0]
    before = [output.clone() for output in pruned(x)]
    state = {name: value.clone() for name, value in pruned.state_dict().items()}
    loaded.first.weight.data.zero_()
    loaded.load_state_dict(state)
    for network in (loaded, copy.deepcopy(pruned)):
        for one, other in zip(network(x), before, strict=True):
            assert torch.equal(one, other)


def test_a_part_that_is_not_called_gets_no_name_by_a_tie() -> None:
    model = Shared().eval()
    model.idle = nn.Linear(6, 16)
    model.idle.weight = model.first.weight
    pruned = fxprune.compile(model, torch.randn(4, 6), 0.5)
    assert not any(name.startswith("idle") for name in pruned.state_dict())


class Renamed(nn.Module):
    """Three widths; each layer has another name that comes later."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.Linear(16, 3)
        self.box = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
        self.tied, self.scaling, self.shelf, self.inner = self.first.weight, self.norm, self.box, self.box[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.box(self.norm(self.first(x)).relu()))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("first", "tied"),
        ("norm", "scaling"),
        ("box.0", "inner"),
        ("box.0", "shelf.0"),
        ("box", "*helf"),
        ("b*", "*ner"),
    ],
)
def test_a_pattern_may_match_any_name_of_a_part(name: str, other: str) -> None:
    model, x = Renamed().eval(), torch.randn(4, 6)
    plans = [fxprune.plan(model, x, 0.2, exclude=[pattern]) for pattern in (name, other)]
    assert plans[0].to_json().replace(f'["{name}"]', "") == plans[1].to_json().replace(f'["{other}"]', "")
    assert len({len(kept) for kept in plans[0].groups.values()} - {16}) == 1  # the other group alone is narrower
    shares = [fxprune.plan(model, x, {pattern: 0.25}).groups for pattern in (name, other)]
    assert {group: list(kept) for group, kept in shares[0].items()} == {g: list(kept) for g, kept in shares[1].items()}


@pytest.mark.parametrize(("name", "other"), [("first", "tied"), ("box.0", "inner"), ("box.0", "shelf.0")])
def test_channels_are_removed_by_any_name_of_a_layer(name: str, other: str) -> None:
    model, x = Renamed().eval(), torch.randn(4, 6)
    states = [fxprune.remove(model, x, {path: [1, 2]}).state_dict() for path in (name, other)]
    assert states[0].keys() == states[1].keys() == model.state_dict().keys()
    assert sum(value.shape != model.state_dict()[key].shape for key, value in states[0].items()) > 2
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key])
