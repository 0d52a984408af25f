"""What is around a call and what a call leaves behind: autocast, context variables, settings, hooks, sizes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import CaptureError, ModeError, ModelError

COUNT: ContextVar[int] = ContextVar("COUNT", default=0)
STEPS = threading.local()
STEPS.taken = 0


def _width(network: nn.Module, path: str) -> int:
    layer = network.get_submodule(path)
    assert isinstance(layer, nn.Conv2d)
    return layer.out_channels


class Middle(nn.Module):
    """Two layers with something between them."""

    def __init__(self, middle: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.drop, self.last, self.middle = nn.Linear(8, 16), nn.Dropout(0.0), nn.Linear(16, 4), middle

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.middle(self, self.first(x).relu()))
        return out


def without_autocast(_: nn.Module, h: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return h.float() @ torch.full((16, 16), 1 / 3)


def test_a_forward_that_turns_autocast_off_refuses_to_run_under_one() -> None:
    x = torch.randn(2, 8)
    pruned = fxprune.compile(Middle(without_autocast).eval(), x, 0.5)
    pruned(x), pruned.train()(x)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(AssertionError, match="without autocast around"):
        pruned(x)


def test_a_forward_that_leaves_autocast_alone_runs_under_one() -> None:
    x = torch.randn(2, 8)
    pruned = fxprune.compile(Middle(lambda _, h: h * 2).eval(), x, 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert pruned(x).dtype == torch.bfloat16


def counts_in_training(module: nn.Module, h: Tensor) -> Tensor:
    if module.training:
        COUNT.set(COUNT.get() + 1)
        return h * COUNT.get()
    return h


def steps_in_training(module: nn.Module, h: Tensor) -> Tensor:
    if module.training:
        STEPS.taken += 1
        return h * STEPS.taken
    return h


def drops_more_and_more(module: Middle, h: Tensor) -> Tensor:
    if module.training:
        module.drop.p = min(0.5, module.drop.p + 0.1)
    # Zeros, so that no answer tells one probability from another.
    return module.drop(h) * torch.zeros(16)


@pytest.mark.parametrize("middle", [counts_in_training, steps_in_training, drops_more_and_more])
def test_state_that_training_keeps_is_refused_there_and_left_as_it_was(
    middle: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    x = torch.randn(2, 8)
    pruned = fxprune.compile(Middle(middle).eval(), x, 0.5)
    pruned(x)
    with pytest.raises(ModeError):
        pruned.train()(x)
    assert (COUNT.get(), STEPS.taken) == (0, 0)


class OneByOne(nn.Module):
    """Takes rows apart, so that a batch of one has a graph of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        h = torch.cat([h[i : i + 1] * 2 for i in range(h.shape[0])])
        out: Tensor = self.head(self.second(h).mean((2, 3)))
        return out


def test_hooks_see_real_values_once_a_call() -> None:
    x = torch.randn(2, 3, 8, 8)
    pruned = fxprune.compile(OneByOne().eval(), x, 0.5)
    seen: list[torch.Size] = []
    pruned.get_submodule("second").register_forward_hook(
        lambda *call: seen.append(call[2].sum().item() and call[2].shape)
    )
    pruned(x), pruned(x[:1])
    assert [shape[0] for shape in seen] == [2, 1]


class Tokens(nn.Module):
    """Positions are written down as a number, and -1 stands for channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 12, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).flatten(2).transpose(1, 2)
        out: Tensor = self.last(h.reshape(h.shape[0], 36, 2, -1).sum(2))
        return out


def test_positions_written_down_are_checked_beside_cut_channels() -> None:
    model, x, larger = Tokens().eval(), torch.randn(2, 3, 6, 6), torch.randn(2, 3, 6, 12)
    pruned = fxprune.compile(model, x, 0.5)
    assert _width(pruned, "first") < 12
    pruned(x)
    with pytest.raises(AssertionError, match="made for inputs of other sizes"):
        pruned(larger)


class Layout(nn.Module):
    """Asks whether images lie channels last, which a single channel always does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 2, 3), nn.Conv2d(2, 16, 3), nn.Conv2d(16, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = h.clamp(max=0.1) if h.is_contiguous(memory_format=torch.channels_last) else h * 3
        out: Tensor = self.last(self.second(h).relu())
        return out


def test_a_question_about_layout_keeps_two_channels() -> None:
    pruned = fxprune.compile(Layout().eval(), torch.randn(2, 3, 8, 8), 0.7, max_ratio=1.0)
    assert _width(pruned, "first") == 2
    assert _width(pruned, "second") < 16


class AsksLayout(nn.Module):
    """Goes one way where what is made in the middle is contiguous, and another where it is not."""

    def __init__(self, middle: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.norm, self.middle = nn.Conv2d(3, 8, 1), nn.LayerNorm(8), middle
        self.attention, self.last = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.middle(self, self.first(x))
        h = h.clamp(max=0.1) if h.is_contiguous() else h * 3
        return self.last(h) if h.shape[-1] == 8 else h.mean((1, 2, 3))


def tokens(_: nn.Module, h: Tensor) -> Tensor:
    return h.flatten(2).permute(0, 2, 1)


def test_a_question_about_the_layout_behind_a_norm_is_proven() -> None:
    model = AsksLayout(lambda net, h: net.norm(tokens(net, h))).eval()
    assert _width(fxprune.compile(model, torch.randn(2, 3, 4, 4), 0.5), "first") < 8


def test_a_question_about_the_layout_of_every_second_channel_keeps_all() -> None:
    model = AsksLayout(lambda net, h: torch.cat([net.first(h.new_ones(2, 3, 4, 4)), h], 1)[:, ::2]).eval()
    with pytest.raises(ModelError, match="memory format of a part"):
        fxprune.compile(model, torch.randn(2, 3, 4, 4), 0.5)


@pytest.mark.parametrize("bias", [True, False])
def test_the_layout_that_attention_gives_is_no_question_to_decide_on(bias: bool) -> None:
    model = AsksLayout(lambda net, h: net.attention(*[tokens(net, h)] * 3)[0])
    model.attention = nn.MultiheadAttention(8, 2, batch_first=True, bias=bias)
    with pytest.raises(CaptureError, match=r"memory format .* call \.contiguous\(\)"):
        fxprune.compile(model.eval(), torch.randn(2, 3, 4, 4), 0.3)


class Threshold(nn.Module):
    """A sum over what is above zero, over all rows: it may be empty before the cut and hold rows after it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.last(self.first(x).relu())
        return h, h.clamp(min=0).sum()


def test_rows_that_depend_on_one_another_after_the_cut_alone_are_proven() -> None:
    model = Threshold().eval()
    with torch.no_grad():
        model.last.weight.copy_(torch.tensor([[-9.0, 1, 1, 1, 1, 1]]))
        model.first.bias.copy_(torch.tensor([9.0, 1, 1, 1, 1, 1]))
    pruned = fxprune.remove(model, torch.rand(3, 4), {"first": [0]}, verify="full")
    proof = fxprune.report(pruned).proof
    assert proof is not None
    assert proof.batch_sizes
