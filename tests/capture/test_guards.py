"""Control flow on values: constants and buffers answer it, data never do, and guards of tracing are told the truth."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.compiler import is_compiling
from torch.nn import functional as F

import fxprune
from fxprune.errors import CaptureError
from tests.capture.compiled import captured, pruned, vector
from tests.snapshots import process


class Encoder(nn.Module):
    """One attention over (batch, tokens, 8) with a mask (batch, tokens) of ones and zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 48), nn.Linear(16, 8)

    def attend(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        added = None if mask is None else (1.0 - mask[:, None, None, :]) * -100.0
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=added).transpose(1, 2).flatten(2))


class GuardedByModule(Encoder):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        skip = not torch.compiler.is_compiling() and bool(torch.all(mask == 1))
        return self.attend(x, None if skip else mask)


class GuardedByName(Encoder):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        skip = not is_compiling() and bool(torch.all(mask == 1))
        return self.attend(x, None if skip else mask)


class GuardedByJit(Encoder):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        skip = not torch.jit.is_tracing() and bool(torch.all(mask == 1))
        return self.attend(x, None if skip else mask)


def masks() -> tuple[torch.Tensor, torch.Tensor]:
    some = torch.ones(2, 5)
    some[:, 3:] = 0
    return torch.ones(2, 5), some


@pytest.mark.parametrize("net", [GuardedByModule, GuardedByName, GuardedByJit])
@pytest.mark.parametrize("whole", [True, False], ids=["ones", "some"])
def test_guarded_masks_are_followed(net: Callable[[], nn.Module], whole: bool) -> None:
    model, x = net(), torch.randn(2, 5, 8)
    result = pruned(model, (x, masks()[0 if whole else 1]))
    assert fxprune.report(result).opaque == ()
    copy = fxprune.compile(model, (x, masks()[0 if whole else 1]), 0.0)
    for mask in masks():  # the value of the sample's mask was not baked in
        torch.testing.assert_close(copy(x, mask), model(x, mask))


def test_heads_and_widths_are_found_behind_guards() -> None:
    graph = fxprune.analyze(GuardedByModule(), (torch.randn(2, 5, 8), masks()[0]))
    assert sorted(g.variable.size for g in graph.groups) == [4, 4]  # heads and head_dim


def test_guards_are_restored_and_other_threads_see_the_truth() -> None:
    seen = io.StringIO()  # a list would be given back as it was

    class Asks(GuardedByModule):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            thread = threading.Thread(target=lambda: seen.write(f"{torch.compiler.is_compiling()} "))
            thread.start()
            thread.join()
            return super().forward(x, mask)

    model, x = Asks().eval(), torch.randn(2, 5, 8)
    before, guards = process(), (torch.compiler.is_compiling, torch.jit.is_tracing, is_compiling)
    captured(model, (x, masks()[0]))
    assert process() == before
    assert (torch.compiler.is_compiling, torch.jit.is_tracing, is_compiling) == guards
    assert seen.getvalue() == "False False "


class Unguarded(Encoder):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.attend(x, None if torch.all(mask == 1) else mask)


class AsksForNothing(Encoder):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        skip = bool(torch.all(mask == 1)) or torch.compiler.is_compiling()
        return self.attend(x, None if skip else mask)


@pytest.mark.parametrize("net", [Unguarded, AsksForNothing])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_a_branch_on_data_is_never_baked_in(net: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    with pytest.raises(CaptureError, match="reads tensor values"):
        captured(net().eval(), (torch.randn(2, 5, 8), torch.ones(2, 5).to(dtype)))


class BranchOnBuffer(nn.Module):
    def __init__(self, active: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)
        self.register_buffer("active", torch.tensor(active))
        self.register_buffer("steps", torch.tensor([1, 2]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        if self.active and self.steps.sum() == 3:
            h = h.relu()
        if torch.arange(h.shape[0], device=h.device).max() >= 0:
            h = h * 2
        return self.b(h)


@pytest.mark.parametrize("active", [True, False])
def test_buffers_and_constants_answer_control_flow(active: bool) -> None:
    assert ("relu" in str(captured(BranchOnBuffer(active), vector()).graph)) is active
    pruned(BranchOnBuffer(active), vector())


class BranchOnParameter(BranchOnBuffer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).relu() if self.a.weight.sum() > 0 else self.a(x))


class BranchOnWrittenBuffer(BranchOnBuffer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps.add_(1)
        return self.b(self.a(x).relu() if self.steps.sum() > 4 else self.a(x))


@pytest.mark.parametrize("net", [BranchOnParameter, BranchOnWrittenBuffer])
def test_values_that_change_from_run_to_run_decide_nothing(net: Callable[[bool], nn.Module]) -> None:
    with pytest.raises(CaptureError, match="reads tensor values"):
        captured(net(True), vector())
