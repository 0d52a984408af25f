"""Custom autograd functions and ops of other libraries: each is one call, and how channels pass is found by trial."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function

import fxprune
from fxprune.errors import ArtefactError, CaptureError
from fxprune.saving.descriptions import decode_graph
from fxprune.saving.opaque import resolve_imports


class Swish(Function):
    """Saves its input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gate = torch.sigmoid(x)
        return grad * gate * (1 + x * (1 - gate))


class Clipped(Function):
    """The newer form, without a context in its forward; the gradient is three times what it should be."""

    @staticmethod
    def forward(x: Tensor, slope: float = 2.0) -> Tensor:
        return torch.relu(x) * slope

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return 3 * grad * (y > 0), None


class Normalised(Function):
    """A layer norm over the channels of images, with weights by channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        y = (x - mean) / (variance + eps).sqrt()
        ctx.save_for_backward(y, variance, weight)
        ctx.eps = eps
        return weight.view(1, x.shape[1], 1, 1) * y + bias.view(1, -1, 1, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        y, variance, weight = ctx.saved_tensors
        g = grad * weight.view(1, -1, 1, 1)
        mean, along = g.mean(1, keepdim=True), (g * y).mean(1, keepdim=True)
        return (
            (g - y * along - mean) / (variance + ctx.eps).sqrt(),
            (grad * y).sum((0, 2, 3)),
            grad.sum((0, 2, 3)),
            None,
        )


class Norm(nn.Module):
    """The layer of that norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(width) + 0.5), nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return Normalised.apply(x, self.weight, self.bias, 1e-6)


class Called(nn.Module):
    """Holds a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def network(middle: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 16, 3), middle, nn.Conv2d(16, 12, 3), nn.Conv2d(12, 4, 1)).eval()


def image(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 8)


def narrow(original: nn.Module, pruned: nn.Module) -> nn.Module:
    """The network at the pruned widths, made of its own classes."""
    first, second = (pruned.get_parameter(f"{n}.weight").shape[0] for n in (0, 2))
    middle = Norm(first) if isinstance(original[1], Norm) else copy.deepcopy(original[1])
    layers = [nn.Conv2d(3, first, 3), middle, nn.Conv2d(first, second, 3), nn.Conv2d(second, 4, 1)]
    net = nn.Sequential(*layers).eval()
    net.load_state_dict(pruned.state_dict())
    return net


def gradients(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    net.zero_grad()
    net(x).square().sum().backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "middle",
    [Called(Swish.apply), Called(Clipped.apply), Called(lambda x: Clipped.apply(x, 0.5)), Norm(16)],
    ids=["held in an attribute", "without context", "with a literal", "norm"],
)
def test_widths_around_a_custom_function_shrink_and_its_backward_stays(middle: nn.Module) -> None:
    model = network(middle)
    pruned = fxprune.compile(model, image(), 0.5)
    assert pruned.get_parameter("0.weight").shape[0] < 16
    assert any("has no rule; by trial on random values" in note for note in fxprune.report(pruned).notes)
    again, x = pickle.loads(pickle.dumps(pruned)), image(5)
    built = narrow(model, pruned)
    for net in (pruned, again):
        torch.testing.assert_close(net(x), built(x))
        torch.testing.assert_close(gradients(net, x), gradients(built, x))


class Product(Function):
    """A linear layer that computes its own backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.t() + bias

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        return grad @ weight, rows.t() @ x.flatten(0, -2), rows.sum(0)


class Layer(nn.Module):
    """The layer of that function."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(outer, inner) / 4), nn.Parameter(torch.randn(outer))

    def forward(self, x: Tensor) -> Tensor:
        return Product.apply(x, self.weight, self.bias)


def test_both_widths_of_a_custom_product_shrink() -> None:
    model = nn.Sequential(nn.Linear(5, 16), Layer(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    pruned, x = fxprune.compile(model, torch.randn(2, 7, 5), 0.5), torch.randn(4, 3, 5)
    outer, inner = pruned.get_parameter("1.weight").shape
    assert inner < 16
    assert outer < 12
    built = nn.Sequential(nn.Linear(5, inner), Layer(inner, outer), nn.ReLU(), nn.Linear(outer, 3)).eval()
    built.load_state_dict(pruned.state_dict())
    torch.testing.assert_close(gradients(pruned, x), gradients(built, x))


def test_two_functions_with_one_forward_are_told_apart() -> None:
    class Doubled(Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None: ...

    class Tripled(Doubled):
        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return 9 * grad

    with pytest.raises(fxprune.FxpruneError, match="have one forward: give each its own"):
        fxprune.compile(Called(Tripled.apply), image(), 0.5)


def _function(forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor, Tensor], Tensor] | None) -> Any:
    """A custom function; without a backward it has that of its forward."""

    class Made(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return forward(x)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            if backward is not None:
                return backward(grad, x)
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                return torch.autograd.grad(forward(x), x, grad)[0]

    return Made.apply


MIXED = {
    "number of channels": (lambda x: x * x.shape[1], None),
    "sum over channels": (lambda x: x - x.sum(1, keepdim=True), None),
    "largest of all": (lambda x: torch.where(x.abs().amax() > 5, x * 2, x), None),
    "random": (lambda x: x * torch.rand_like(x), None),
    "weights of its own": (lambda x: x * torch.linspace(1, 2, 16).view(1, -1, 1, 1).to(x), None),
    "order": (lambda x: x.flip(1), None),
    "neighbour": (lambda x: x + x.roll(1, 1), None),
    "first channel": (lambda x: x * x[:, :1].sigmoid(), None),
    "groups": (lambda x: x.unflatten(1, (4, -1)).softmax(2).flatten(1, 2), None),
    "even widths": (lambda x: x * (1 + x.shape[1] % 2), None),
    "way back over channels": (lambda x: x * 2, lambda g, x: g.mean(1, keepdim=True).expand_as(g)),
    "way back by the number": (lambda x: x * 2, lambda g, x: g * g.shape[1]),
}


@pytest.mark.parametrize("name", MIXED)
def test_an_op_that_mixes_channels_keeps_the_widths_around_it(name: str) -> None:
    pruned = fxprune.compile(network(Called(_function(*MIXED[name]))), image(), 0.5)
    assert pruned.get_parameter("0.weight").shape[0] == 16
    assert pruned.get_parameter("2.weight").shape[0] < 12
    assert "has no rule" in fxprune.report(pruned).opaque[0].reason


PASSED = {
    "straight through": (torch.round, lambda g, x: g),
    "gradients turned round": (lambda x: x.view_as(x), lambda g, x: -g),
    "its input itself": (lambda x: x, lambda g, x: 2 * g),
    "instance norm": (lambda x: x - x.mean((2, 3), keepdim=True), None),
    "centred": (lambda x: x - x.mean(1, keepdim=True), None),
}


@pytest.mark.parametrize("name", PASSED)
def test_an_op_that_passes_channels_lets_widths_shrink(name: str) -> None:
    model = network(Called(_function(*PASSED[name])))
    pruned = fxprune.compile(model, image(), 0.5)
    assert pruned.get_parameter("0.weight").shape[0] < 16
    x, built = image(3), narrow(model, pruned)
    torch.testing.assert_close(gradients(pruned, x), gradients(built, x))


def test_functions_that_a_graph_cannot_call_again_stay_opaque() -> None:
    in_place = _function(lambda x: x.mul_(2), None)
    pruned = fxprune.compile(network(Called(in_place)), image(), 0.5)
    assert "in place" in fxprune.report(pruned).opaque[0].reason


class Without(nn.Module):
    """Calls a custom function where gradients are off."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = Swish.apply(x)
        return x + y


def test_a_custom_function_without_gradients_has_none_in_the_result() -> None:
    model = network(Without())
    pruned = fxprune.compile(model, image(), 0.5)
    assert pruned.get_parameter("0.weight").shape[0] < 16
    x, built = image(3), narrow(model, pruned)
    torch.testing.assert_close(gradients(pruned, x), gradients(built, x))


def test_integers_are_not_drawn_for_a_kernel_that_trusts_them() -> None:
    drawn = []

    class Picked(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
            drawn.append(index)
            return x[:, :, index]

    table = torch.tensor([5, 3, 4])
    pruned = fxprune.compile(network(Called(lambda x: Picked.apply(x, table))), image(), 0.2, verify=False)
    assert "takes integers" in fxprune.report(pruned).opaque[0].reason
    assert all(index.is_meta or torch.equal(index, table) for index in drawn)


@torch.library.custom_op("fxprune_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return x * 2 + 1


@doubled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_a_library_op_without_a_backward_passes_channels() -> None:
    model = network(Called(lambda x: doubled(x)))
    pruned = fxprune.compile(model, image(), 0.5)
    assert pruned.get_parameter("0.weight").shape[0] < 16
    with torch.no_grad():
        torch.testing.assert_close(pruned(x := image(3)), narrow(model, pruned)(x))


def test_an_op_of_a_library_is_not_known_by_its_name() -> None:
    library = torch.library.Library("fxprune_tests", "FRAGMENT")
    library.define("relu(Tensor x) -> Tensor")
    library.impl("relu", lambda x: x.flip(1), "CompositeImplicitAutograd")
    library.define("gate(Tensor x, float scale) -> Tensor")
    library.impl("gate", lambda x, scale: x * torch.sigmoid(scale * x), "CompositeImplicitAutograd")
    ops = torch.ops.fxprune_tests
    flipped = fxprune.compile(network(Called(lambda x: ops.relu(x))), image(), 0.5)
    assert flipped.get_parameter("0.weight").shape[0] == 16
    model = network(Called(lambda x: ops.gate(x, 1.7)))
    gated, x = fxprune.compile(model, image(), 0.5), image(3)
    assert gated.get_parameter("0.weight").shape[0] < 16
    torch.testing.assert_close(gated(x), narrow(model, gated)(x))


def test_a_folder_names_the_custom_function_that_loading_is_to_import(tmp_path: Path) -> None:
    pruned, x = fxprune.compile(network(Called(Swish.apply)), image(), 0.5), image()
    fxprune.save(pruned, tmp_path / "net")
    name = f"{Swish.__module__}:Swish"
    with pytest.raises(ArtefactError, match=name):
        fxprune.load(tmp_path / "net")
    loaded = fxprune.load(tmp_path / "net", allow=[name])
    assert torch.equal(loaded(x), pruned(x))
    torch.testing.assert_close(gradients(loaded, x), gradients(pruned, x))


@pytest.mark.parametrize("called", ["packet", "overload"])
def test_a_folder_names_the_operator_of_a_library_that_it_calls(called: str, tmp_path: Path) -> None:
    operator = torch.ops.fxprune_tests.doubled
    pruned = fxprune.compile(network(Called(operator if called == "packet" else operator.default)), image(), 0.5)
    fxprune.save(pruned, tmp_path / "net")
    name = "torch.ops:fxprune_tests.doubled" + ".default" * (called == "overload")
    with pytest.raises(ArtefactError, match=name):
        fxprune.load(tmp_path / "net")
    for allow in ([name], [operator, operator.default]):
        loaded, x = fxprune.load(tmp_path / "net", allow=allow), image(3)
        assert torch.equal(loaded(x), pruned(x))
    source = (tmp_path / "net" / "model.py").read_text()
    assert name.replace(":", ".") in source


@pytest.mark.parametrize("name", ["torch.ops:load_library", "torch.ops:fxprune_tests.gone", "os:system"])
def test_a_folder_calls_nothing_but_an_operator_by_the_name_of_one(name: str) -> None:
    entries = [
        {"name": "x", "op": "placeholder", "target": "x"},
        {"name": "y", "op": "call_function", "target": {"operator": name}},
        {"name": "output", "op": "output", "target": "output", "args": [{"node": "y"}]},
    ]
    with pytest.raises(ArtefactError, match="not an output class|import the library"):
        decode_graph(entries, nn.Module(), resolve_imports([name], {name: None}))


class Marked(nn.Module):
    """Calls an operator of another library that writes to its argument, and says so in its schema alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x).detach().clone()
        torch.ops.fxprune_tests_writes.tripled(h)
        return self.last(h)


def _tripled(x: torch.Tensor) -> None:
    x.mul_(3)


def test_an_operator_whose_schema_alone_tells_that_it_writes_is_refused() -> None:
    library = torch.library.Library("fxprune_tests_writes", "DEF")
    library.define("tripled(Tensor(a!) x) -> ()")
    library.impl("tripled", _tripled, "CompositeExplicitAutograd")
    with pytest.raises(CaptureError, match="tripled writes to its arguments"):
        fxprune.compile(Marked(), torch.randn(2, 8), 0.3, verify=False)
