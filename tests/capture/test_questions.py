"""What a forward asks, sets and writes beside its values: the graph does the same, or says that it does not."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import CaptureError, ModeError, ModelError, ProofError

X = torch.randn(2, 3, 8, 8)
Middle = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """Three layers with something between the last two."""

    def __init__(self, middle: Middle, norm: type[nn.BatchNorm2d] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.first, self.norm, self.last, self.middle = nn.Conv2d(3, 16, 3), norm(16), nn.Conv2d(16, 4, 1), middle
        nn.init.normal_(self.norm.running_mean)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.middle(self, torch.relu(self.first(x))))
        return out


def normed(net: Net, h: Tensor) -> Tensor:
    out: Tensor = net.norm(h)
    return out


def frozen(net: Net, h: Tensor) -> Tensor:
    net.norm.eval()
    return normed(net, h)


def frozen_for_a_while(net: Net, h: Tensor) -> Tensor:
    before = net.norm.training
    net.norm.training = False
    try:
        return normed(net, h)
    finally:
        net.norm.train(before)


@pytest.mark.parametrize("middle", [frozen, frozen_for_a_while])
def test_a_forward_that_changes_modes_has_no_graph_of_training(middle: Middle) -> None:
    model = Net(middle).eval()
    pruned = fxprune.compile(model, X, 0.0)
    torch.testing.assert_close(pruned(X), model(X))
    with pytest.raises(ModeError, match="the forward changes the mode of norm"):
        pruned.train()(X)


class NeverTrains(nn.BatchNorm2d):
    """Says with each attribute what it is."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, False if name == "training" else value)


def test_a_class_that_sets_its_own_mode_flags_is_tried() -> None:
    model = Net(normed, NeverTrains).eval()
    pruned = fxprune.compile(model, X, 0.0)
    torch.testing.assert_close(pruned.train()(X), model.train()(X))


def numbers() -> Iterator[int]:
    yield from range(1, 100)


NUMBERS = numbers()


def test_a_generator_that_training_moves_on_is_refused_there_and_left_alone() -> None:
    model = Net(lambda net, h: h * next(NUMBERS) if net.training else h).eval()
    pruned = fxprune.compile(model, X, 0.5)
    with pytest.raises(ModeError, match="NUMBERS"):
        pruned.train()(X)
    assert next(NUMBERS) == 1


def seeds(_: Net, h: Tensor) -> Tensor:
    torch.manual_seed(7)
    return h + torch.rand(1)


def forks(_: Net, h: Tensor) -> Tensor:
    with torch.random.fork_rng():
        return h + torch.rand(1)


QUESTIONS: dict[str, Middle] = {
    "inference mode": lambda _, h: h * (2 if torch.is_inference_mode_enabled() else 1),
    "inference tensors": lambda _, h: h * (2 if h.is_inference() else 1),
    "gradients that are there": lambda net, h: h * (2 if net.first.weight.grad is None else 1),
    "addresses": lambda _, h: h * (2 if h.contiguous().data_ptr() == h.data_ptr() else 1),
    "bytes of a storage": lambda _, h: h * (2 if h.untyped_storage().nbytes() == h.numel() * 4 else 1),
    "order of dims": lambda _, h: h * (2 if h.dim_order() == (0, 1, 2, 3) else 1),
    "seeds": seeds,
    "forks": forks,
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_what_no_graph_can_answer_is_refused(name: str) -> None:
    with pytest.raises(CaptureError):
        fxprune.compile(Net(QUESTIONS[name]).eval(), X, 0.5, verify=False)


def test_a_branch_that_only_its_own_precision_takes_is_no_proof() -> None:
    model = Net(lambda _, h: h * (2 if h.float() is h else 1)).eval()
    with pytest.raises(ProofError):
        fxprune.compile(model, X, 0.5)


CONVERSIONS: dict[str, Middle] = {
    "a device in words": lambda _, h: h.to("cpu", torch.float32),
    "by keyword": lambda _, h: h.to(device="cpu", dtype=torch.float32),
    "a type in words": lambda _, h: h.type("torch.FloatTensor"),
    "a type": lambda _, h: h.type(torch.FloatTensor),
    "an attribute of a parameter": lambda net, h: h * net.first.weight.gain,
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_conversions_and_attributes_are_followed(name: str) -> None:
    model = Net(CONVERSIONS[name]).eval()
    model.first.weight.gain = 2.0  # type: ignore[attr-defined]
    pruned = fxprune.compile(model, X, 0.5)
    assert isinstance(pruned.first, nn.Conv2d)
    assert pruned.first.out_channels < 16


def decays(net: Net, h: Tensor) -> Tensor:
    if net.training:
        with torch.no_grad():
            net.last.weight.mul_(0.9)
    return h


def test_a_parameter_that_training_writes_to_without_gradients_learns_on() -> None:
    model = Net(decays).eval()
    pruned = fxprune.compile(model, X, 0.0)
    for network in (model.train(), pruned.train()):
        for _ in range(2):
            network(X).square().mean().backward()
    for name, mine in pruned.named_parameters():
        torch.testing.assert_close(mine, model.get_parameter(name))
        torch.testing.assert_close(mine.grad, model.get_parameter(name).grad)


def test_statistics_that_another_buffer_looks_at_are_refused() -> None:
    model = Net(normed)
    model.register_buffer("view", model.norm.running_mean.view(4, 4))  # type: ignore[union-attr]
    with pytest.raises(ModelError, match="over the same memory"):
        fxprune.compile(model.eval(), X, 0.5)


LATEST: OrderedDict[str, Tensor] = OrderedDict()


def from_a_cache_of_two(_: Net, h: Tensor) -> Tensor:
    key = f"{h.shape[2]}x{h.shape[3]}"
    if key in LATEST:
        LATEST.move_to_end(key)
    else:
        LATEST[key] = torch.ones(h.shape[2], h.shape[3])
    if len(LATEST) > 2:
        LATEST.popitem(last=False)
    return h * LATEST[key]


def test_a_cache_of_the_latest_works_as_before() -> None:
    model = Net(from_a_cache_of_two).eval()
    for size in (8, 10):
        model(torch.randn(1, 3, size, size))
    held = dict(LATEST)
    with contextlib.suppress(CaptureError):
        fxprune.compile(model, torch.randn(2, 3, 12, 12), 0.5)
    assert LATEST.keys() == held.keys()
    for size in (8, 14, 10):
        model(torch.randn(1, 3, size, size))
    assert list(LATEST) == ["12x12", "8x8"]


SCALE: contextvars.ContextVar[Tensor] = contextvars.ContextVar("SCALE", default=torch.ones(16, 1, 1))  # noqa: B039


def test_a_context_variable_may_hold_a_tensor() -> None:
    fxprune.compile(Net(lambda _, h: h * SCALE.get()).eval(), X, 0.5)


class Lists(nn.Module):
    """Reads a list of images, or a dict, as long as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)

    def forward(self, given: Any) -> Tensor:
        x = torch.cat(given) if isinstance(given, list) else given["x"] * given.get("scale", 2)
        out: Tensor = self.last(self.first(x))
        return out


@pytest.mark.parametrize(("sample", "other"), [([X, X], [X, X, X]), (({"x": X},), {"x": X, "scale": torch.ones(1)})])
def test_containers_keep_their_lengths(sample: Any, other: Any) -> None:
    pruned = fxprune.compile(Lists().eval(), sample, 0.5)
    pruned(sample[0] if isinstance(sample, tuple) else sample)
    with pytest.raises(AssertionError, match="entries, as in the sample"):
        pruned(other)


def test_a_thread_in_the_middle_of_a_forward_ends_it_after_a_capture() -> None:
    entered, leave, answers = threading.Event(), threading.Event(), list[Any]()
    capturing = threading.Event()

    def meets(_: Net, h: Tensor) -> Tensor:
        if threading.current_thread().name == "server":
            entered.set()
            leave.wait(20)
        else:
            capturing.set()
            entered.wait(20)
        return h * int(h.shape[0])

    model = Net(meets).eval()
    expected = deepcopy(model)

    def serve() -> None:
        capturing.wait(20)
        answers.append(model(X))

    thread = threading.Thread(target=serve, name="server")
    thread.start()
    fxprune.compile(model, X, 0.5, verify=False)
    leave.set()
    thread.join()
    torch.testing.assert_close(answers, [expected(X)])
