"""Layers that run other code, or hold other tensors, than their class of torch.nn: what they do is in the result."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import fxprune
from fxprune.errors import ProofError
from fxprune.proof.attributes import check_attributes
from fxprune.rules import is_leaf
from tests.nets.oracles import masked


class Called(nn.Conv2d):
    """Changes its result around the call."""

    def __call__(self, h: Tensor) -> Tensor:
        result: Tensor = super().__call__(h)
        return result * 2 + 1


class Around(nn.Conv2d):
    """The same, in the method that hooks are run from."""

    def _call_impl(self, h: Tensor) -> Tensor:
        result: Tensor = super()._call_impl(h)
        return result * 2 + 1


class Convolving(nn.Conv2d):
    """Changes its weight in a method that the forward calls."""

    def _conv_forward(self, *given: Any) -> Tensor:
        return super()._conv_forward(given[0], torch.tanh(given[1]), *given[2:])


class Checking(nn.BatchNorm2d):
    """Refuses large images."""

    def _check_input_dim(self, *given: Tensor) -> None:
        if given[0].shape[-1] > 16:
            raise ValueError("too large")


class Named(nn.Conv2d):
    """Runs what its base class does."""

    def extra_repr(self) -> str:
        return "named"


class Attending(nn.MultiheadAttention):
    """Attends twice as strongly."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        attended, weights = super().__call__(*args, **kwargs)
        return attended * 2, weights


def patched() -> nn.Module:
    layer = nn.Conv2d(12, 12, 3, padding=1)
    vars(layer)["_conv_forward"] = lambda x, weight, bias: F.conv2d(x, weight * 2, bias, padding=1)
    return layer


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "around the call": lambda: Called(12, 12, 3, padding=1),
    "around the hooks": lambda: Around(12, 12, 3, padding=1),
    "inside the forward": lambda: Convolving(12, 12, 3, padding=1),
    "in the place of a method": patched,
}


class Net(nn.Module):
    """A layer between convolutions, and more tensors."""

    def __init__(self, layer: nn.Module, between: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.between = between
        self.first, self.layer, self.last = nn.Conv2d(3, 12, 3), layer, nn.Conv2d(12, 5, 3)
        self.other, self.norm = nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.scale, self.shift = nn.Parameter(torch.rand(12, 1, 1, 1)), nn.Parameter(torch.rand(12))
        self.register_buffer("mean", torch.rand(12))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self, self.first(x)).relu())


def net(layer: nn.Module, between: Callable[[Any, Tensor], Tensor] = lambda net, h: net.layer(h)) -> Net:
    torch.manual_seed(0)
    return Net(layer, between).eval()


def assert_as_masked(model: nn.Module, result: nn.Module) -> None:
    """Equal to the original in which what was removed is zero, at two sizes, with equal gradients."""
    plan = fxprune.report(result).plan
    assert plan is not None
    expected = masked(model, plan.keep).double()
    result = deepcopy(result).double()
    for shape in ((2, 3, 8, 8), (3, 3, 7, 9)):
        x = torch.randn(*shape, dtype=torch.float64)
        torch.testing.assert_close(result(x), expected(x))
        result(x).square().sum().backward()
        expected(x).square().sum().backward()
        for name, parameter in result.named_parameters():
            gradient = expected.get_parameter(name).grad
            assert (parameter.grad is None) is (gradient is None)
            for dim, kept in enumerate(plan.keep[name]):
                gradient = gradient if gradient is None or kept is None else gradient.index_select(dim, kept)
            torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("ratio", [0.0, 0.4])
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_what_a_layer_does_beyond_its_class_is_done(
    make: Callable[[], nn.Module], ratio: float, tmp_path: Path
) -> None:
    model, x = net(make()), torch.randn(2, 3, 8, 8)
    result = fxprune.compile(model, x, ratio)
    assert_as_masked(model, result)
    fxprune.save(result, tmp_path / "saved")
    torch.testing.assert_close(fxprune.load(tmp_path / "saved")(x), result(x))


def test_attention_around_whose_call_more_is_done() -> None:
    layer = Attending(12, 3, batch_first=True)
    model = net(layer, lambda net, h: net.layer(*(h.flatten(2).mT,) * 3)[0].mT.reshape(h.shape))
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(fxprune.compile(model, x, 0.0)(x), model(x))


def test_a_check_in_a_derived_layer_stays() -> None:
    model = net(Checking(12))
    result = fxprune.compile(model, torch.randn(2, 3, 8, 8), 0.4)
    assert result(torch.randn(1, 3, 18, 18)).shape == model(torch.randn(1, 3, 18, 18)).shape
    with pytest.raises(ValueError, match="too large"):
        model(torch.randn(1, 3, 20, 20))
    with pytest.raises(AssertionError, match="other sizes"):
        result(torch.randn(1, 3, 20, 20))


def test_a_derived_layer_without_code_of_its_own_stays_a_layer() -> None:
    assert is_leaf(Named(3, 4, 1))
    assert not any(map(is_leaf, (Called(3, 4, 1), Around(3, 4, 1), Convolving(3, 4, 1), Checking(4), patched())))


@pytest.mark.parametrize("kind", [Called, Around, Convolving])
def test_the_proof_refuses_a_base_class_in_its_place(kind: type[nn.Conv2d]) -> None:
    layer = kind(4, 4, 1)
    base = nn.Conv2d(4, 4, 1)
    vars(base).update(vars(layer))
    with pytest.raises(ProofError, match=f"is a {kind.__name__} and became a Conv2d"):
        check_attributes(nn.Sequential(layer), nn.Sequential(base))


def swapped(net: Any, h: Tensor) -> Tensor:
    return net.layer(h) + functional_call(net.layer, dict(net.other.named_parameters()), (h,))


def scaled(net: Any, h: Tensor) -> Tensor:
    result: Tensor = functional_call(net.layer, {"weight": net.layer.weight * net.scale}, (h,))
    return result


def normed(net: Any, h: Tensor) -> Tensor:
    result: Tensor = functional_call(net.norm, {"weight": net.shift.sigmoid(), "running_mean": net.mean * 2}, (h,))
    return result


def replaced(net: Any, h: Tensor) -> Tensor:
    net.norm.running_mean = net.mean * 2
    return net.norm(h)


@pytest.mark.parametrize("ratio", [0.0, 0.4])
@pytest.mark.parametrize("between", [swapped, scaled, normed, replaced])
def test_a_layer_computes_with_the_tensors_that_it_is_given(
    between: Callable[[Any, Tensor], Tensor], ratio: float
) -> None:
    model = net(nn.Conv2d(12, 12, 3, padding=1), between)
    assert_as_masked(model, fxprune.compile(model, torch.randn(2, 3, 8, 8), ratio))


def inferred(net: Any, h: Tensor) -> Tensor:
    with torch.inference_mode():
        h = net.layer(h)
    return h.clone()


@pytest.mark.parametrize("ratio", [0.0, 0.4])
def test_no_gradient_passes_inference_mode(ratio: float) -> None:
    model = net(nn.Conv2d(12, 12, 3, padding=1), inferred)
    result = fxprune.compile(model, torch.randn(2, 3, 8, 8), ratio)
    assert_as_masked(model, result)
