"""Questions about precision, layout, gradients and autocast: answered live, checked in the graph, or refused."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import CaptureError, ModeError

Between = Callable[["Net", torch.Tensor], torch.Tensor]
_FACTORS = {torch.float32: 1.0, torch.float16: 2.0, torch.float64: 1.0, torch.bfloat16: 3.0}
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Net(nn.Module):
    """Two convolutions with something in between."""

    def __init__(self, between: Between) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 4, 1)
        self.register_buffer("table", torch.randn(4, 2).T)
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.between(self, self.first(x).tanh()))


def like(tensor: torch.Tensor) -> dict[str, Any]:
    return {"dtype": tensor.dtype, "device": tensor.device}


def helped(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return tensor.new_zeros(1, **kwargs) + torch.full((1,), 0.3, dtype=args[0])


def held(net: Net, h: torch.Tensor) -> torch.Tensor:
    net.dtype = h.dtype
    return h + torch.ones(1, dtype=net.dtype)


def upcast(_: Net, h: torch.Tensor) -> torch.Tensor:
    given, wide = h.dtype, torch.float32
    return h.to(wide).softmax(1).to(given)


# Right in every precision, under autocast and in every memory format.
LIVE: dict[str, Between] = {
    "a dict": lambda _, h: h + torch.ones(1, **like(h)),
    "arguments": lambda _, h: h + helped(h, *(h.dtype,), dtype=h.dtype),
    "an attribute": held,
    "a literal in a variable": upcast,
    "a constant that is cast": lambda _, h: h + torch.arange(8).to(h.dtype),
    "a limit": lambda _, h: h.masked_fill(h > 0, torch.finfo(h.dtype).min).relu() + h,
    "the smallest step": lambda _, h: h / (h.abs() + torch.finfo(h.dtype).eps),
    "whether it is a float": lambda _, h: h * 2 if h.is_floating_point() else h,
    "the dtype of a weight": lambda net, h: h.to(net.last.weight.dtype) * 2,
    "a cast and back": lambda net, h: h.float().sin().to(net.table.dtype),
    "a cast back to what it was": lambda _, h: torch.sigmoid(h.float()).type_as(h) * h,
    "a cast and the value before it": lambda _, h: h.float().sin().to(h.dtype) + h,
    "a type by its name": lambda _, h: torch.ones(1).type(h.type()) * h,
    "the type of a result": lambda net, h: h.to(torch.result_type(h, net.table)),
}
# Right, or refused with the line, in the precisions that go another way.
CHECKED: dict[str, Between] = {
    "a comparison": lambda _, h: h.clamp(max=0.1) if h.dtype == torch.float16 else h,
    "a tuple": lambda _, h: h * 2 if h.dtype in (torch.float16, torch.bfloat16) else h,
    "a table": lambda _, h: h * _FACTORS[h.dtype],
    "element_size": lambda _, h: h * h.element_size(),
    "itemsize": lambda _, h: h / h.dtype.itemsize,
    "nbytes": lambda _, h: h / h.nbytes,
    "half of a limit": lambda _, h: (h * 0 + torch.finfo(h.dtype).max / 2).clamp(max=3) + h,
    "the wider of two": lambda _, h: h.to(torch.promote_types(h.dtype, torch.float32)).sin().to(h.dtype),
    "the type's name": lambda _, h: h * 2 if h.type() == "torch.FloatTensor" else h,
    "the type's class": lambda _, h: h * 2 if isinstance(h, torch.FloatTensor) else h,
    "one of two classes": lambda _, h: h * 2 if isinstance(h, (np.ndarray, torch.BFloat16Tensor)) else h,
    "a buffer's": lambda net, h: (
        h * (2 if net.table.element_size() == 4 else 3) + (1 if net.table.is_contiguous() else 2)
    ),
    "a wider one for one": lambda _, h: (h.double() if h.dtype == torch.float32 else h).sin().to(h.dtype),
    "contiguous": lambda _, h: h * 2 if h.is_contiguous() else h * 3,
    "channels last": lambda _, h: h * 2 if h.is_contiguous(memory_format=torch.channels_last) else h * 3,
    "a stride": lambda _, h: h / h.stride(1),
    "all strides": lambda _, h: h / h.stride()[0],
    "contiguous when permuted": lambda _, h: h * 2 if h.permute(0, 2, 3, 1).is_contiguous() else h * 3,
}


def answers(network: nn.Module, x: torch.Tensor) -> torch.Tensor | str:
    """The output, or the refusal."""
    try:
        return network(x)
    except AssertionError as error:
        return str(error)


@pytest.mark.parametrize("name", [*LIVE, *CHECKED])
def test_the_result_is_right_or_refuses_with_the_line(name: str) -> None:
    torch.manual_seed(0)
    model = Net({**LIVE, **CHECKED}[name]).eval()
    x = torch.randn(2, 3, 8, 8)
    result = fxprune.compile(model, x, 0.0)
    assert isinstance(answers(result, x), torch.Tensor)
    for dtype in FLOATS:
        original, twin, given = copy.deepcopy(model).to(dtype), copy.deepcopy(result).to(dtype), x.to(dtype)
        for around in (torch.enable_grad(), torch.no_grad(), torch.autocast("cpu")):
            for image in (given, given.to(memory_format=torch.channels_last)):
                with around:
                    expected, found = original(image), answers(twin, image)
                if isinstance(found, str):
                    assert name in CHECKED
                    assert "this network was made for" in found
                    assert "test_settings.py:" in found
                else:
                    assert found.dtype == expected.dtype
                    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2, equal_nan=True)


@pytest.mark.parametrize(
    "between",
    [
        lambda _, h: h * 2 if torch.is_grad_enabled() else h * 3,
        lambda _, h: h * 2 if h.requires_grad else h,
        lambda _, h: asks(h),
    ],
)
def test_other_branches_without_gradients_are_refused(between: Between) -> None:
    with pytest.raises(CaptureError, match=r"asks whether gradients are on.*test_settings\.py:\d+"):
        fxprune.compile(Net(between).eval(), torch.randn(2, 3, 8, 8), 0.0)


HELD: Any = torch.is_grad_enabled
HOLDERS: dict[str, tuple[Any, Callable[[Any], bool]]] = {
    "a variable": (HELD, lambda held: held()),
    "a method of a function": (HELD.__call__, lambda held: held()),
    "a partial function": (functools.partial(HELD), lambda held: held()),
    "a list": ([HELD], lambda held: held[0]()),
    "an object with a list": (types.SimpleNamespace(by_name={"on": (HELD,)}), lambda held: held.by_name["on"][0]()),
    "a function in a list": ([lambda: HELD()], lambda held: held[0]()),
    "a name that is computed": ("grad", lambda held: getattr(torch, f"is_{held}_enabled")()),
}


@pytest.mark.parametrize("name", HOLDERS)
@pytest.mark.parametrize("on_the_model", [True, False])
def test_questions_about_gradients_are_seen_under_other_names(name: str, on_the_model: bool) -> None:
    held, ask = HOLDERS[name]
    model = Net(lambda net, h: h * 2 if ask(net.held if on_the_model else held) else h).eval()
    model.held = held
    with pytest.raises(CaptureError, match="asks whether gradients are on"):
        fxprune.compile(model, torch.randn(2, 3, 8, 8), 0.0)


def test_a_seed_that_is_set_under_another_name_is_refused() -> None:
    def between(_: Net, h: torch.Tensor, seed: Any = torch.manual_seed) -> torch.Tensor:
        seed(0)
        return h + torch.rand_like(h)

    with pytest.raises(CaptureError, match="seeds torch's generator"):
        fxprune.compile(Net(between).eval(), torch.randn(2, 3, 8, 8), 0.0)


@pytest.mark.parametrize(
    "between",
    [
        lambda _, h: h * 2 if torch.is_autocast_enabled("cpu") else h,
        lambda _, h: h * 2 if torch.is_autocast_enabled("cpu") and torch.is_grad_enabled() else h,
        lambda _, h: h * 2 if torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled() else h,
    ],
)
def test_another_branch_under_autocast_is_refused_when_it_is_reached(between: Between) -> None:
    x = torch.randn(2, 3, 8, 8)
    model = Net(between).eval()
    result = fxprune.compile(model, x, 0.0)
    for around in (torch.no_grad(), torch.enable_grad()):
        with around:
            torch.testing.assert_close(result(x), model(x))
            with torch.autocast("cpu"):
                assert "this network was made for calls without autocast" in answers(result, x)


@pytest.mark.parametrize(
    ("between", "around"),
    [
        (lambda net, h: h if torch.is_grad_enabled() or not net.training else h * 2, torch.no_grad),
        (lambda net, h: h * 2 if torch.is_inference_mode_enabled() and net.training else h, torch.inference_mode),
    ],
)
def test_a_mode_that_is_asked_for_in_some_settings_alone_is_not_taken_for_unread(between: Between, around: Any) -> None:
    model, x = Net(between), torch.randn(2, 3, 8, 8)
    result = fxprune.compile(model.eval(), x, 0.0)
    with around():
        torch.testing.assert_close(result(x), model(x))
        with pytest.raises(ModeError, match="of which there is no graph"):
            result.train()(x)


def asks(h: torch.Tensor) -> torch.Tensor:
    return h if is_on() else -h


def is_on() -> bool:
    return torch.is_grad_enabled()


def test_a_cast_that_changes_nothing_leaves_its_argument_a_tensor_of_its_own() -> None:
    def rescaled(net: Net, h: torch.Tensor) -> torch.Tensor:
        wide = h.to(torch.float32)
        return h + (wide * wide.pow(2).mean(1, keepdim=True).rsqrt()).to(h.dtype)

    model, x = Net(rescaled).eval(), torch.randn(2, 3, 8, 8)
    result = fxprune.compile(model, x, 0.0)
    for dtype in FLOATS:
        original, twin, given = copy.deepcopy(model).to(dtype), copy.deepcopy(result).to(dtype), x.to(dtype)
        torch.testing.assert_close(twin(given), original(given))


def test_a_forward_that_asks_for_autocast_and_a_dtype_may_be_the_same_under_autocast() -> None:
    def between(_: Net, h: torch.Tensor) -> torch.Tensor:
        _.asked = torch.is_autocast_enabled("cpu")
        return h * 2 if h.dtype == torch.float16 else h

    assert fxprune.report(fxprune.compile(Net(between).eval(), torch.randn(2, 3, 8, 8), 0.0)).opaque == ()


class AskingBeforeAttention(nn.Module):
    """Its attention adds in another order than torch's, and its forward goes another way in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        h = h.clamp(max=0.1) if h.dtype is torch.float32 else h * 3
        return self.last(self.attention(h, h, h, need_weights=False)[0])


def test_a_proof_in_double_keeps_the_checks_of_the_graph() -> None:
    model, x = AskingBeforeAttention().eval(), torch.randn(2, 5, 3)
    result = fxprune.compile(model, x, 0.0)
    torch.testing.assert_close(result(x), model(x))
