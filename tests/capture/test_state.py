"""State that a forward keeps for its next call: tensors are written, the rest is refused."""

from __future__ import annotations

import contextlib
import copy
import itertools
import random
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxprune
from fxprune.errors import CaptureError, ModelError

SHARED = SimpleNamespace(calls=0)
COUNTS = {"calls": 0}


class Keeping(nn.Module):
    """Does something in training after its first layer, and something with what that left."""

    calls = 0

    def __init__(self, leave: Callable[..., Any], read: Callable[..., Any]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.register_buffer("mean", torch.zeros(8))
        self.plain, self.history, self.numbers, self.step = torch.zeros(8), [], {"step": 0}, 0
        self.generator = torch.Generator().manual_seed(0)
        self.numbers_to_come, self.turns = itertools.count(1), itertools.cycle([1.0, 2.0])
        self.chance, self.numpy_chance, self.array = random.Random(0), np.random.default_rng(0), np.zeros(1)
        self.bytes, self.set, self.queue = bytearray(2), set(), deque([1.0, 2.0, 3.0])
        self.slots, self.scale = Slots(), Scale()
        self.leave, self.read = leave, read

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.first(x))
        if self.training:
            self.leave(self, h.detach().mean((0, 2, 3)))
        return self.last(self.read(self, h))


def centred(model: Any, h: torch.Tensor) -> torch.Tensor:
    return h - model.mean[:, None, None]


def untouched(_: Any, h: torch.Tensor) -> torch.Tensor:
    return h


def put(holder: Any, name: str, value: Any) -> None:
    setattr(holder, name, value)


WRITTEN = {
    "data of a buffer": (lambda m, s: put(m.mean, "data", 0.9 * m.mean.data + s), centred),
    "data of a buffer in place": (lambda m, s: m.mean.data.mul_(0.9).add_(s), centred),
    "a part of the data": (lambda m, s: m.mean.data.__setitem__(slice(4), s[:4]), centred),
    "a copy": (lambda m, s: m.mean.copy_(s), centred),
    "another buffer": (lambda m, s: put(m, "mean", m.mean * 0.5 + s), centred),
    "another buffer in the table": (lambda m, s: m._buffers.update(mean=m.mean * 0.5 + s), centred),
    "clipped weights": (lambda m, _: put(m.first.weight, "data", m.first.weight.data.clamp(-0.1, 0.1)), untouched),
    "weights clipped in place": (lambda m, _: m.first.weight.data.clamp_(-0.1, 0.1), untouched),
    "a number that nothing reads": (lambda m, _: put(m, "step", m.step + 1), untouched),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_training_writes_into_tensors_is_in_the_result(name: str) -> None:
    model = Keeping(*WRITTEN[name])
    pruned = fxprune.compile(model, torch.randn(2, 3, 8, 8), 0.0)
    x = torch.randn(4, 3, 8, 8)
    for mode in (True, True, False, True):
        answers = [module.train(mode)(x) for module in (model, pruned)]
        torch.testing.assert_close(answers[1], answers[0])
        gradients = [
            torch.autograd.grad(y.square().sum(), m.first.weight) for y, m in zip(answers, (model, pruned), strict=True)
        ]
        torch.testing.assert_close(gradients[1], gradients[0])
        held = model.state_dict()
        assert all(torch.equal(tensor, held[key]) for key, tensor in pruned.state_dict().items())


class Slots:
    __slots__ = ("step",)

    def __init__(self) -> None:
        self.step = 0


class Scale:
    """Scales by how often it was called."""

    step = 0

    def __call__(self, h: torch.Tensor) -> torch.Tensor:
        self.step += 1
        return h * min(1.0, self.step / 10)


def by_default(h: torch.Tensor, calls: list[int] = []) -> torch.Tensor:  # noqa: B006
    calls.append(1)
    return h * min(1.0, len(calls) / 10)


def on_itself(h: torch.Tensor) -> torch.Tensor:
    on_itself.calls += 1  # type: ignore[attr-defined]
    return h * min(1.0, on_itself.calls / 10)  # type: ignore[attr-defined]


on_itself.calls = 0  # type: ignore[attr-defined]
NUMBERS, CHANCE, ELSEWHERE = itertools.count(1), random.Random(0), Slots()


def on(condition: Callable[[Any], bool]) -> Callable[..., Any]:
    return lambda m, h: h * 2 if condition(m) else h


def later(read: Callable[[Any], int]) -> Callable[..., Any]:
    return on(lambda m: read(m) > 5)


def count(holder: dict[str, int], name: str) -> None:
    holder[name] += 1


KEPT = {
    "a scale that grows": (lambda m, _: put(m, "step", m.step + 1), lambda m, h: h * min(1.0, m.step / 100)),
    "a counter": (lambda m, _: put(m, "step", m.step + 1), later(lambda m: m.step)),
    "a dropout that grows": (lambda m, _: put(m, "step", m.step + 1), lambda m, h: F.dropout(h, min(0.5, m.step / 9))),
    "a counter in a dict": (lambda m, _: count(m.numbers, "step"), later(lambda m: m.numbers["step"])),
    "a counter of the class": (lambda m, _: put(type(m), "calls", m.calls + 1), later(lambda m: m.calls)),
    "a counter in a global": (lambda m, _: count(COUNTS, "calls"), later(lambda m: COUNTS["calls"])),
    "a counter in a global object": (
        lambda m, _: put(SHARED, "calls", SHARED.calls + 1),
        later(lambda m: SHARED.calls),
    ),
    "a list that grows": (lambda m, s: m.history.append(s), lambda m, h: h * (1 + len(m.history))),
    "a tensor that is no buffer": (
        lambda m, s: put(m, "plain", m.plain / 2 + s),
        lambda m, h: h - m.plain[:, None, None],
    ),
    "the same in place": (lambda m, s: m.plain.add_(s), lambda m, h: h - m.plain[:, None, None]),
    "a generator": (lambda m, s: None, lambda m, h: h + torch.rand(8, 1, 1, generator=m.generator)),
    "an iterator": (lambda m, s: None, lambda m, h: h * next(m.numbers_to_come)),
    "an iterator over and over": (lambda m, s: None, lambda m, h: h * next(m.turns)),
    "an iterator in a global": (lambda m, s: None, lambda m, h: h * next(NUMBERS)),
    "a generator of Python's": (lambda m, s: None, lambda m, h: h * m.chance.random()),
    "the same in a global": (lambda m, s: None, lambda m, h: h * CHANCE.random()),
    "a generator of numpy's": (lambda m, s: None, lambda m, h: h * m.numpy_chance.random()),
    "an array": (lambda m, s: m.array.__iadd__(1), lambda m, h: h * float(m.array[0])),
    "bytes": (lambda m, s: m.bytes.__setitem__(0, m.bytes[0] + 1), lambda m, h: h * m.bytes[0]),
    "a set": (lambda m, s: m.set.add(len(m.set)), lambda m, h: h * (1 + len(m.set))),
    "a queue that turns": (lambda m, s: m.queue.rotate(1), lambda m, h: h * m.queue[0]),
    "slots": (lambda m, s: put(m.slots, "step", m.slots.step + 1), lambda m, h: h * (1 + m.slots.step)),
    "a callable object": (lambda m, s: None, lambda m, h: m.scale(h)),
    "a default argument": (lambda m, s: None, lambda m, h: by_default(h)),
    "an attribute of a function": (lambda m, s: None, lambda m, h: on_itself(h)),
    "a class of others": (lambda m, s: put(Scale, "step", Scale.step + 1), lambda m, h: h * (1 + Scale.step)),
    "the memory of another tensor": (lambda m, s: m.mean.set_(s), centred),
}


class OpaqueHead(nn.Module):
    """Decides on values, in a list that training makes longer."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x, x[x > 0].sum(), *[x] * self.training]


@pytest.mark.parametrize("always", [False, True], ids=["in training", "in both modes"])
@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("opaque", [False, True], ids=["alone", "before an opaque part"])
def test_state_that_a_graph_would_forget_is_never_baked_in(name: str, always: bool, opaque: bool) -> None:
    class Model(Keeping):
        def forward(self, x: torch.Tensor) -> Any:
            h = F.relu(self.first(x))
            if always or self.training:
                self.leave(self, h.detach().mean((0, 2, 3)))
                h = self.read(self, h)
            return self.head(self.last(h))

    model = Model(*KEPT[name])
    model.head = OpaqueHead() if opaque else nn.Identity()
    try:
        pruned = fxprune.compile(model, torch.randn(2, 3, 8, 8), 0.0)
    except (fxprune.errors.CaptureError, fxprune.errors.ModelError):
        pass
    else:
        assert not always
        with pytest.raises(fxprune.errors.ModeError, match="training mode, of which there is no graph"):
            pruned.train()(torch.randn(2, 3, 8, 8))
        torch.testing.assert_close(pruned.eval()(x := torch.randn(4, 3, 8, 8)), copy.deepcopy(model).eval()(x))
    assert (model.step, model.numbers, model.calls, model.history) == (0, {"step": 0}, 0, [])
    assert (SHARED.calls, COUNTS, CHANCE.getstate()) == (0, {"calls": 0}, random.Random(0).getstate())
    assert (by_default.__defaults__, on_itself.calls, Scale.step) == (([],), 0, 0)  # type: ignore[attr-defined]


@pytest.mark.parametrize("always", [False, True], ids=["in training", "in both modes"])
def test_a_count_behind_an_activation_that_answers_zero_is_found(always: bool) -> None:
    class Model(Keeping):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = F.relu(self.first(x))
            if always or self.training:
                self.history.append(1)
                h = h * (1 + 0.1 * len(self.history))
            return self.last(h)

    model = Model(untouched, untouched)
    nn.init.constant_(model.first.bias, -99.0)
    if always:
        with pytest.raises(fxprune.errors.ModelError, match="'history' for its next call"):
            fxprune.compile(model, torch.randn(2, 3, 8, 8), 0.0)
        return
    with pytest.raises(fxprune.errors.ModeError, match="'history' for its next call"):
        fxprune.compile(model, torch.randn(2, 3, 8, 8), 0.0).train()(torch.randn(2, 3, 8, 8))


class Part(nn.Module):
    """Counts, between layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.step = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1)), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.step += 1
            x = x * min(1.0, self.step / 4)
        return self.body(x)


def test_a_part_that_counts_its_training_steps_stays_opaque() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), Part(), nn.Conv2d(8, 2, 1))
    original = copy.deepcopy(model)
    pruned = fxprune.compile(model, torch.randn(2, 3, 8, 8), 0.0)
    assert [row.name or row.op for row in fxprune.report(pruned).opaque] == ["2"]
    assert "which it changes itself" in fxprune.report(pruned).opaque[0].reason
    x = torch.randn(2, 3, 8, 8)
    for mode in (True, True, False, True, True, True):
        torch.testing.assert_close(pruned.train(mode)(x), original.train(mode)(x))


class Cache(nn.Module):
    """Keeps the table of the last size, as rotary embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.known, self.table = nn.Linear(6, 8), nn.Linear(8, 2), 0, None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.known < x.shape[1]:
            self.known, self.table = x.shape[1], torch.arange(x.shape[1], dtype=x.dtype)
        return self.last(self.first(x) * self.table[:, None])


def test_a_cache_is_no_state() -> None:
    model, x = Cache(), torch.randn(2, 5, 6)
    pruned = fxprune.compile(model, x, 0.4)
    assert pruned.train()(x).shape == (2, 5, 2)


def tenth(gradient: torch.Tensor) -> torch.Tensor:
    return gradient * 0.1


def hooked(_: nn.Module, h: torch.Tensor) -> torch.Tensor:
    h.register_hook(tenth)
    return h


def hooked_if_possible(_: nn.Module, h: torch.Tensor) -> torch.Tensor:
    with contextlib.suppress(RuntimeError):
        h.register_hook(tenth)
    return h


def hooked_where_needed(_: nn.Module, h: torch.Tensor) -> torch.Tensor:
    if h.requires_grad:
        h.register_hook(tenth)
    return h


def hooked_with_a_history(_: nn.Module, h: torch.Tensor) -> torch.Tensor:
    if h.grad_fn is not None:
        h.register_hook(tenth)
    return h


def hooked_where_computed(_: nn.Module, h: torch.Tensor) -> torch.Tensor:
    if not h.is_leaf:
        h.register_hook(tenth)
    return h


def packed(model: Any, h: torch.Tensor) -> torch.Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t * 2, lambda t: t):
        return model.last.weight.sum() * h


def counted(model: Any, h: torch.Tensor) -> torch.Tensor:
    model.last.weight.register_post_accumulate_grad_hook(print)
    return h


GUARDED = [hooked_if_possible, hooked_where_needed, hooked_with_a_history, hooked_where_computed]


@pytest.mark.parametrize("read", [hooked, *GUARDED, packed, counted])
def test_hooks_on_gradients_are_never_dropped(read: Callable[..., Any]) -> None:
    model = Keeping(lambda m, s: None, read).eval()
    with pytest.raises(fxprune.errors.CaptureError, match="no graph would"):
        fxprune.compile(model, torch.randn(2, 3, 8, 8), 0.2)


class HookedPart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        if self.training:
            x.register_hook(tenth)
        return x


def test_a_part_with_a_hook_keeps_it() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), HookedPart(), nn.Conv2d(8, 2, 1))
    pruned, x = fxprune.compile(model, torch.randn(2, 3, 8, 8), 0.0).train(), torch.randn(2, 3, 8, 8)
    gradients = [torch.autograd.grad(m(x).square().sum(), m.get_parameter("0.weight"))[0] for m in (model, pruned)]
    torch.testing.assert_close(*gradients)


class CountingBesideOpaque(nn.Module):
    """Its dropout grows, and its last part cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.drop, self.sorting = nn.Dropout(0.0), Sorting()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.drop.p = min(0.5, self.drop.p + 0.1)
        return self.sorting(self.drop(self.layers(x)))


class Sorting(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x[x > 0].sum()


def test_an_opaque_part_does_not_hide_what_the_rest_keeps() -> None:
    model, x = CountingBesideOpaque().eval(), torch.randn(2, 3, 8, 8)
    pruned = fxprune.compile(model, x, 0.0)
    torch.testing.assert_close(pruned(x), model(x))
    with pytest.raises(fxprune.errors.ModeError, match=r"'p' of the module drop|keeps drop\.p"):
        pruned.train()(x)


class CountingBehindNorm(nn.Module):
    """Its norm refuses a batch of one in training."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.step = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.step += 1
            return self.layers(x) * min(1.0, self.step / 10)
        return self.layers(x)


def test_state_kept_by_training_is_found_with_a_sample_of_one() -> None:
    model = CountingBehindNorm().eval()
    pruned, x = fxprune.compile(model, torch.randn(1, 3), 0.0), torch.randn(4, 3)
    torch.testing.assert_close(pruned(x), model(x))
    with pytest.raises(fxprune.errors.ModeError, match="'step' of the model|keeps step"):
        pruned.train()(x)


class FilledOnFirstTraining(nn.Module):
    """Takes a scale from the first training batch, and keeps it."""

    def __init__(self, normed: bool) -> None:
        super().__init__()
        norm = nn.BatchNorm1d(8, affine=False) if normed else nn.Identity()
        self.layers, self.out = nn.Sequential(nn.Linear(3, 8), norm, nn.ReLU()), nn.Linear(8, 2)
        self.scale, self.is_known = nn.Parameter(torch.ones(8)), False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.layers(x)
        if self.training and not self.is_known:
            self.scale.data.copy_(h.detach().std(0))
            self.is_known = True
        return self.out(h * self.scale)


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "behind a norm"])
def test_buffers_filled_by_the_first_training_call_are_not_filled_again(normed: bool) -> None:
    model = FilledOnFirstTraining(normed).eval()
    pruned, x = fxprune.compile(model, torch.randn(4, 3), 0.0), torch.randn(4, 3)
    torch.testing.assert_close(pruned(x), model(x))
    with pytest.raises(fxprune.errors.ModeError, match="is_known"):
        pruned.train()(x)


class Deciding(nn.Module):
    """Decides by the value of a buffer, to which its training writes in one of several ways."""

    known: torch.Tensor
    scale: torch.Tensor

    def __init__(self, read: Callable[[Deciding], bool], write: Callable[[Deciding], None], done: bool) -> None:
        super().__init__()
        self.first, self.norm, self.out = nn.Linear(3, 8), nn.BatchNorm1d(8, affine=False), nn.Linear(8, 2)
        self.register_buffer("known", torch.tensor([float(done)] * 2))
        self.register_buffer("scale", torch.ones(8))
        self.read, self.write = read, write

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.first(x))
        if self.read(self):
            self.scale.copy_(h.detach().std(0))
            self.write(self)
        return self.out(h * self.scale)


def replacing(net: Deciding) -> None:
    net.known = torch.ones(2)


def through_a_view(net: Deciding) -> None:
    net.known[0] = 1


IN_TRAINING: dict[str, tuple[Callable[[Deciding], bool], Callable[[Deciding], None]]] = {
    "item": (lambda net: net.training and net.known[0].item() == 0, lambda net: net.known.fill_(1)),
    "truth value": (lambda net: net.training and not net.known.any(), through_a_view),
    "equal": (lambda net: net.training and torch.equal(net.known, torch.zeros(2)), replacing),
    "a layer's": (lambda net: net.training and not net.norm.num_batches_tracked, lambda net: None),
}


@pytest.mark.parametrize(("read", "write"), IN_TRAINING.values(), ids=IN_TRAINING)
def test_a_buffer_that_is_written_after_its_value_decided_is_never_baked_in(
    read: Callable[[Deciding], bool], write: Callable[[Deciding], None]
) -> None:
    model = Deciding(read, write, done=False).eval()
    pruned, x = fxprune.compile(model, torch.randn(4, 3), 0.0), torch.randn(4, 3)
    torch.testing.assert_close(pruned(x), model(x))
    with pytest.raises(fxprune.errors.ModeError, match="decides by the value of"):
        pruned.train()(x)


@pytest.mark.parametrize("name", ["item", "truth value", "equal"])
def test_a_buffer_that_is_no_longer_written_decides(name: str) -> None:
    model = Deciding(*IN_TRAINING[name], done=True).eval()
    pruned, x = fxprune.compile(model, torch.randn(4, 3), 0.0).train(), torch.randn(4, 3)
    twin = copy.deepcopy(model).train()
    for _ in range(2):
        torch.testing.assert_close(pruned(x), twin(x))


class Positions(nn.Module):
    """Decides by positions, which have the length and the device of what a layer gives, but none of its values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out, self.drop = nn.Embedding(5, 8), nn.Linear(8, 2), nn.Dropout(0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.drop(self.first(x))
        if (torch.arange(h.shape[1], device=h.device) >= 0).all():
            h = h.relu()
        return self.out(h)


def test_a_value_made_of_sizes_and_a_device_hangs_on_no_parameter() -> None:
    model, x = Positions(), torch.randint(5, (2, 6))
    pruned = fxprune.compile(model.eval(), x, 0.0).train()
    torch.testing.assert_close(pruned(x), model.train()(x))


class Converting(nn.Module):
    """Converts a layer in the forward, as routers that compute in float32 do."""

    def __init__(self, convert: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.first, self.inner, self.out = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.convert = convert

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.inner = self.convert(self.inner)
        return self.out(self.inner(self.first(x).relu()))


@pytest.mark.parametrize(
    "convert", [lambda m: m.to(torch.float32), lambda m: m.float(), lambda m: m.to("cpu"), lambda m: m.cpu()]
)
def test_conversions_of_layers_to_what_they_are(convert: Callable[[nn.Module], nn.Module]) -> None:
    model, x = Converting(convert).eval(), torch.randn(4, 3)
    pruned = fxprune.compile(model, x, 0.4, recover=None, verify="full")
    assert pruned.get_parameter("inner.weight").shape < (8, 8)
    torch.testing.assert_close(fxprune.compile(model, x, 0.0)(x), model(x))


def test_a_conversion_of_a_layer_to_something_else_is_refused() -> None:
    with pytest.raises(fxprune.errors.FxpruneError):
        fxprune.compile(Converting(lambda m: m.half().float()).eval(), torch.randn(4, 3), 0.4)


class Warming(nn.Module):
    """Reads in eval mode what training writes."""

    warm: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(3, 8), nn.Linear(8, 2)
        self.register_buffer("warm", torch.tensor(False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        if self.training:
            self.warm.fill_(True)
        elif self.warm:
            h = h * 2
        return self.out(h)


def test_a_buffer_that_training_writes_and_eval_mode_reads_ends_training() -> None:
    pruned = fxprune.compile(Warming().eval(), torch.randn(4, 3), 0.0)
    with pytest.raises(fxprune.errors.ModeError, match="decides by the value of warm"):
        pruned.train()(torch.randn(4, 3))


READS = {"seed": lambda: torch.initial_seed() % 3, "state": lambda: int(torch.get_rng_state()[0])}


@pytest.mark.parametrize("read", READS)
def test_a_forward_that_reads_the_state_of_torchs_generator_is_refused(read: str) -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x) * (1 + READS[read]()))

    with pytest.raises(CaptureError, match="leave it to the caller"):
        fxprune.compile(Reading(), torch.randn(2, 8), 0.3, verify=False)


class Held(nn.Module):
    """Multiplies by a tensor that is an attribute or in one, but no buffer, after a write to it."""

    def __init__(self, write: Callable[[torch.Tensor], object], nested: bool) -> None:
        super().__init__()
        self.first, self.last, self.write = nn.Linear(8, 8), nn.Linear(8, 3), write
        self.held = [{"scale": torch.ones(8)}] if nested else torch.ones(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.held[0]["scale"] if isinstance(self.held, list) else self.held
        self.write(scale)
        return self.last(self.first(x) * scale)


@dataclass(frozen=True)
class Frozen:
    scale: torch.Tensor


def test_a_tensor_in_an_object_that_counts_calls_is_refused() -> None:
    class Holding(Held):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x) * self.frozen.scale.add_(1))

    model = Holding(torch.clone, False)
    model.frozen = Frozen(torch.ones(8))
    with pytest.raises(ModelError, match="a tensor of shape"):
        fxprune.compile(model, torch.randn(2, 8), 0.3)


@pytest.mark.parametrize("nested", [False, True], ids=["attribute", "nested"])
@pytest.mark.parametrize("write", [lambda t: t.add_(1), lambda t: t.data.mul_(2)], ids=["written", "data"])
def test_a_plain_tensor_that_counts_calls_is_refused(write: Callable[[torch.Tensor], object], nested: bool) -> None:
    with pytest.raises(ModelError, match="keeps held for its next call"):
        fxprune.compile(Held(write, nested), torch.randn(2, 8), 0.3)


def test_a_plain_tensor_that_is_filled_anew_by_each_call_is_a_constant() -> None:
    model, x = Held(lambda t: t.copy_(torch.arange(8.0)), False).eval(), torch.randn(3, 8)
    torch.testing.assert_close(fxprune.compile(model, torch.randn(2, 8), 0.0)(x), model(x))


SCALE = torch.ones(8)
SCALES = {"scale": torch.ones(8)}


class ScaleOfAll:
    value = torch.ones(8)


class OfClass(type):
    scale = torch.ones(8)


class WithClassOfClass(metaclass=OfClass):
    pass


class WithSlot:
    __slots__ = ("scale",)

    def __init__(self) -> None:
        self.scale = torch.ones(8)


PAIR, SLOT, VARIABLE = (torch.ones(8), 1), WithSlot(), ContextVar[torch.Tensor]("scale")
VARIABLE.set(torch.ones(8))
ARRAY, DEFAULT = np.ones(8, dtype=np.float32), torch.ones(8)


def _by_default(scale: torch.Tensor = DEFAULT) -> torch.Tensor:
    return torch.mul(scale, 2, out=scale)


def _array_by_default(scale: np.ndarray[Any, Any] = ARRAY) -> torch.Tensor:
    scale += 1
    return torch.from_numpy(scale)


def _replaced() -> torch.Tensor:
    SCALES["scale"] = SCALES["scale"] + 1
    return SCALES["scale"]


OUTSIDE: dict[str, Callable[[], torch.Tensor]] = {
    "global": lambda: SCALE.add_(1),
    "entry": lambda: SCALES["scale"].mul_(2),
    "other entry": _replaced,
    "class": lambda: ScaleOfAll.value.add_(1),
    "class of a class": lambda: WithClassOfClass.scale.add_(1),
    "entry of a tuple": lambda: PAIR[0][:4].add_(1).sum() * PAIR[0],
    "several at once": lambda: (torch._foreach_add_([PAIR[0]], 1.0), PAIR[0])[1],
    "slot": lambda: SLOT.scale.data.add_(1),
    "context variable": lambda: VARIABLE.get().add_(1),
    "default": _by_default,
    "array by default": _array_by_default,
}


class Outside(nn.Module):
    """Multiplies by a tensor that other code can reach, and changes it for its next call."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.first, self.last, self.scale = nn.Linear(8, 8), nn.Linear(8, 3), OUTSIDE[name]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x) * self.scale())


@pytest.mark.parametrize("name", OUTSIDE)
def test_tensors_of_the_process_that_count_calls_are_refused_and_stay_as_they_were(name: str) -> None:
    with pytest.raises(ModelError, match="for its next call"):
        fxprune.compile(Outside(name), torch.randn(2, 8), 0.3)
    others = PAIR[0], SLOT.scale, VARIABLE.get(), DEFAULT, OfClass.scale, torch.from_numpy(ARRAY)
    assert all(torch.equal(held, torch.ones(8)) for held in (SCALE, SCALES["scale"], ScaleOfAll.value, *others))


@pytest.mark.parametrize("through", ["attribute", "data"])
def test_a_buffer_never_gets_values_of_another_shape(through: str) -> None:
    """Without rows the model's buffer would have none, and nothing could be copied into the one that a graph has."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)
            self.register_buffer("row", torch.zeros(1, 16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.first(x).relu()
            mixed = hidden + self.row.sum(0)
            if through == "data":
                self.row.data = hidden.detach()[:1]
            else:
                self.row = hidden.detach()[:1]
            return self.last(mixed)

    model = Last().eval()
    result = fxprune.compile(model, torch.randn(4, 8), 0.0)
    for rows in (4, 1, 2):
        x = torch.randn(rows, 8)
        torch.testing.assert_close(result(x), model(x))
        torch.testing.assert_close(result.row, model.row)
    with pytest.raises(AssertionError, match="inputs of other sizes"):
        result(torch.randn(0, 8))


def test_a_buffer_with_as_many_rows_as_the_last_batch_is_refused_where_it_is_read() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)
            self.register_buffer("rows", torch.zeros(2, 16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.first(x).relu()
            mixed = hidden + self.rows.sum(0)
            self.rows = hidden.detach()
            return self.last(mixed)

    with pytest.raises(ModelError, match="keeps rows for its next call"):
        fxprune.compile(Rows().eval(), torch.randn(2, 8), 0.0)
