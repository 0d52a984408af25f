"""Networks inside wrappers, and code under torch.compile: the network is pruned as it would be without them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.optim.swa_utils import AveragedModel

import fxprune
from tests.refusing import image, small_net
from tests.snapshots import snapshot


def never(*_: Any) -> NoReturn:
    """A backend of torch.compile that fails: nothing is to be compiled while a network is pruned."""
    raise AssertionError("compiled")


def compiled(network: nn.Module) -> Any:
    return torch.compile(network, backend=never)


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def values(network: nn.Module, prefix: str = "") -> dict[str, list[Any]]:
    return {name.removeprefix(prefix): tensor.tolist() for name, tensor in network.state_dict().items()}


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "DataParallel": nn.DataParallel,
    "OptimizedModule": compiled,
    "OptimizedModule, DistributedDataParallel": lambda net: compiled(nn.parallel.DistributedDataParallel(net)),
    "DistributedDataParallel, OptimizedModule": lambda net: nn.parallel.DistributedDataParallel(compiled(net)),
}


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("names", WRAPPERS)
def test_the_network_inside_is_pruned(names: str, tmp_path: Path) -> None:
    network = small_net()
    wrapped = WRAPPERS[names](network)
    before = snapshot(wrapped)
    pruned = fxprune.compile(wrapped, image(), 0.3, exclude=[network[3]])
    assert snapshot(wrapped) == before
    assert values(pruned) == values(fxprune.compile(network, image(), 0.3, exclude=[network[3]]))
    report = fxprune.report(pruned)
    assert report.proof is not None
    assert f"pruned without {names}: wrap the result again where you need it" in " ".join(str(report).split())
    again = nn.parallel.DistributedDataParallel(pruned.train())
    again(image()).sum().backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())
    pruned.eval()
    assert fxprune.report(again) is report
    fxprune.save(again, tmp_path / "net")
    x = image()
    assert torch.equal(fxprune.load(tmp_path / "net").eval()(x), pruned(x))


class Parted(nn.Module):
    """A body that is reached through its wrapper."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x)) * self.body.gain


@pytest.mark.parametrize("keep_class", [False, True])
def test_a_part_in_a_wrapper_keeps_its_names(keep_class: bool, tmp_path: Path) -> None:
    plain = Parted(small_net()).eval()
    plain.body.gain = 2.0  # type: ignore[assignment]
    wrapped = copy.deepcopy(plain)
    wrapped.body = compiled(wrapped.body)
    before = snapshot(wrapped)
    options: dict[str, Any] = {"exclude": [wrapped.body], "keep_class": keep_class}
    assert fxprune.plan(wrapped, image(), 0.0, **options).keep
    pruned = fxprune.compile(wrapped, image(), 0.3, keep_class=keep_class)
    assert snapshot(wrapped) == before
    assert "pruned without OptimizedModule (body)" in str(fxprune.report(pruned))
    assert [name for name in values(pruned) if name.startswith("body.")] == [
        name for name in values(wrapped) if name.startswith("body.")
    ]
    expected = fxprune.compile(plain, image(), 0.3)
    assert {n.replace("_orig_mod.", ""): v for n, v in values(pruned).items()} == values(expected)
    x = image()
    assert torch.equal(copy.deepcopy(pruned)(x), expected(x))
    if not keep_class:
        fxprune.save(pruned, tmp_path / "net")
        assert torch.equal(fxprune.load(tmp_path / "net").eval()(x), expected(x))


@pytest.mark.usefixtures("one_rank")
def test_the_average_of_a_wrapped_network_is_pruned() -> None:
    network = small_net()
    average = AveragedModel(nn.parallel.DistributedDataParallel(network)).eval()
    average.requires_grad_(False)
    pruned = fxprune.compile(average, image(), 0.3)
    expected = fxprune.compile(network, image(), 0.3)
    assert values(pruned, "module.module.") == values(expected)


class Decorated(nn.Module):
    """A method, and a function in an attribute, that are compiled when they are first called."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small_net()
        self.gate = torch.compile(lambda x: x * torch.sigmoid(1.7 * x), backend=never)

    @torch.compile(backend=never)
    def halves(self, x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2)
        return torch.cat([second.relu(), first])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gate(self.halves(self.body(x)))  # type: ignore[no-any-return]


def test_compiled_functions_and_methods_are_traced_as_python_code() -> None:
    pruned = fxprune.compile(Decorated().eval(), image(), 0.3)
    report = fxprune.report(pruned)
    assert not report.opaque
    assert report.proof is not None
    with pytest.raises(Exception, match="compiled"):  # outside of fxprune, code is compiled as before
        Decorated()(image())


CALLS: list[int] = []


class Counting(nn.Module):
    """Keeps a list that its decorated forward makes longer with each call, and multiplies by its length."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small_net()

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        CALLS.append(1)
        return self.body(x) * len(CALLS)  # type: ignore[no-any-return]


def test_what_a_decorated_forward_changes_is_seen() -> None:
    with pytest.raises(fxprune.FxpruneError, match="container 0 that it shares"):
        fxprune.compile(Counting().eval(), image(), 0.3)
    assert not CALLS


def test_layers_compiled_in_place_are_cut_and_independent_of_the_original() -> None:
    network = small_net()
    plain = fxprune.compile(copy.deepcopy(network), image(), 0.3)
    for layer in (network, network[0], network[5]):  # type: ignore[index]
        layer.compile(backend="eager")
    x = image()
    expected = network(x)
    pruned = fxprune.compile(network, x, 0.3)
    assert torch.equal(pruned(x), plain(x))
    for parameter in pruned.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(network(x), expected)
    assert not pruned(x).any()
