"""Dtypes and devices: reads of them stay reads, half models, memory formats, frozen parameters, the meta device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxprune
from fxprune.errors import FxpruneError
from tests.capture.compiled import captured, image, pruned, vector
from tests.nets.oracles import masked


class Reading(nn.Module):
    """Reads dtype and device of its input and makes new tensors of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.a(x)
        steps = torch.arange(hidden.shape[-2], device=x.device, dtype=x.dtype)
        ones = torch.ones(hidden.shape[0], 1, device=hidden.device).to(hidden.dtype)
        mask = torch.zeros_like(hidden).to(hidden) + torch.full((1,), 0.5, dtype=hidden.dtype, device=hidden.device)
        return self.b((hidden + steps[:, None] * ones + mask).to(x.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_result_moves_to_every_dtype(dtype: torch.dtype) -> None:
    result = pruned(Reading(), vector(3)).to(dtype)
    assert result(vector(3).to(dtype)).dtype == dtype


def test_the_result_moves_to_the_meta_device() -> None:
    result = pruned(Reading(), vector(3)).to("meta")
    assert result(vector(3).to("meta")).is_meta


def test_no_literal_of_a_device_that_the_source_does_not_write() -> None:
    text = str(captured(Reading(), vector(3)).graph)
    assert "meta" not in text
    assert "cpu" not in text


def test_a_dtype_that_the_source_writes_stays_written() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.a(x)
            weights = torch.softmax(hidden, dim=-1, dtype=torch.float32).to(hidden.dtype)
            return self.b(hidden * weights)

    result = pruned(Mixed(), vector())
    assert "torch.float32" in result.code
    assert result.bfloat16()(vector().bfloat16()).dtype == torch.bfloat16


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12)
        self.b, self.last = nn.Conv2d(12, 12, 3), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(F.adaptive_avg_pool2d(self.b(self.norm(self.a(x)).relu()), 1).flatten(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_models_of_other_dtypes(dtype: torch.dtype) -> None:
    result = pruned(Conv().to(dtype), image().to(dtype))
    assert {p.dtype for p in result.parameters()} == {dtype}


def test_channels_last_is_kept() -> None:
    model = Conv().to(memory_format=torch.channels_last)
    result = pruned(model, image().to(memory_format=torch.channels_last))
    assert result.b.weight.is_contiguous(memory_format=torch.channels_last)
    assert not result.b.weight.is_contiguous()


def test_frozen_parameters_stay_frozen() -> None:
    model = Conv()
    model.a.requires_grad_(False)
    model.norm.bias.requires_grad_(False)
    result = pruned(model, image())
    expected = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name: p.requires_grad for name, p in result.named_parameters()} == expected


def test_inside_inference_mode() -> None:
    model, sample = Conv().eval(), image()
    with torch.inference_mode():
        result = fxprune.compile(model, sample, 0.3)
    assert fxprune.report(result).proof is not None
    result.train()
    result(image(4)).sum().backward()
    assert result.b.weight.grad is not None


def test_inside_no_grad() -> None:
    with torch.no_grad():
        result = fxprune.compile(Conv(), image(), 0.3)
    result(image(4)).sum().backward()
    assert result.b.weight.grad is not None


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model, sample = Conv().eval(), image()
    result = fxprune.compile(model, sample, 0.3)
    with torch.inference_mode():
        assert result(sample).shape == (2, 4)


def test_a_sample_made_in_inference_mode() -> None:
    with torch.inference_mode():
        sample = image()
    pruned(Conv(), sample)


def test_non_contiguous_weights_and_samples() -> None:
    model = Conv()
    model.b.weight = nn.Parameter(torch.randn(3, 3, 12, 12).permute(3, 2, 0, 1))
    pruned(model, image().transpose(2, 3))


@pytest.mark.parametrize("sample_on_meta", [False, True])
def test_a_model_on_the_meta_device_is_cut_by_structure(sample_on_meta: bool) -> None:
    with torch.device("meta"):
        model = Conv()
    sample = image().to("meta") if sample_on_meta else image()
    result = fxprune.compile(model, sample, 0.5)
    report = fxprune.report(result)
    assert report.proof is None
    assert report.unproven == "structural, unproven"
    assert report.macs_after <= 0.5 * report.macs_before
    assert all(p.is_meta for p in result.parameters())
    assert report.plan is not None
    assert all(kept == tuple(range(len(kept))) for kept in report.plan.groups.values())
    assert result(image().to("meta")).shape == (2, 4)


def test_a_meta_plan_is_applied_to_real_weights() -> None:
    with torch.device("meta"):
        skeleton = Conv()
    plan = fxprune.plan(skeleton, image(), 0.5)
    result = fxprune.apply(Conv().eval(), image(), plan)
    assert fxprune.report(result).proof is not None


def test_under_a_default_dtype_of_double() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        result = pruned(Conv(), image())
        assert result.b.weight.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_under_a_default_device() -> None:
    with torch.device("cpu"):
        pruned(Conv(), image())


def test_complex_values() -> None:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.fft.fft(self.a(x), dim=1).abs())

    result = fxprune.compile(Spectral().eval(), torch.randn(2, 6, 8), 0.0)
    assert result(torch.randn(2, 6, 8)).shape == (2, 6, 4)


class Making(nn.Module):
    """Makes a tensor in an old way, or cuts by a number in a tensor; ``change`` does so."""

    def __init__(self, change: Callable[[Making, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.change = nn.Linear(8, 16), nn.Linear(16, 6), change
        self.register_buffer("count", torch.tensor(4))
        self.register_buffer("table", torch.randn(5, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.change(self, self.a(x).relu())


MADE: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "new of sizes": lambda net, h: net.b(h * h.new(h.size(0), 1).fill_(2)),
    "new of a size": lambda net, h: net.b(h + h.new(h.size()).zero_()),
    "new of a part of a size": lambda net, h: net.b(h + h.new(h.shape[:1]).fill_(3)[:, None]),
    "new of numbers": lambda net, h: net.b(h * h.new([1.5, 2]).sum()),
    "new of nothing": lambda net, h: net.b(torch.cat([h.new().view(0, 1), h.new(len(h), 1).fill_(1)]) * h),
    "a type of sizes": lambda net, h: net.b(h + torch.FloatTensor(h.size(0), 1).fill_(1)),
    "a type of a size": lambda net, h: net.b(h * torch.DoubleTensor(h.size()).fill_(2).to(h.dtype)),
    "a type of numbers": lambda net, h: net.b(h * torch.FloatTensor([1, 2]).sum()),
    "a type that is not called": lambda net, h: net.b(h.type(torch.FloatTensor)),
    "to a number in a tensor": lambda net, h: net.b(h)[:, : torch.tensor(3)],
    "to a number in a buffer": lambda net, h: net.b(h)[:, : net.count],
    "from a number in a tensor": lambda net, h: net.b(h)[..., torch.tensor(1) : torch.tensor(5)],
    "at a number in a tensor": lambda net, h: net.b(h + net.table[torch.tensor(2)]),
    "at a number in a buffer": lambda net, h: net.b(h + net.table[net.count]),
}


@pytest.mark.parametrize("change", MADE.values(), ids=MADE)
@pytest.mark.parametrize("training", [False, True])
def test_old_ways_of_making_and_numbers_in_tensors(change: Any, training: bool) -> None:
    model = Making(change)
    found = fxprune.compile(model, vector(3), 0.4, recover=None, verify="full")
    report = fxprune.report(found)
    assert report.plan is not None
    assert bool(report.opaque) is (change is MADE["to a number in a buffer"])
    assert found.a.out_features < 16
    for rows in (1, 3, 5):
        x = vector(rows)
        torch.testing.assert_close(found.train(training)(x), masked(model, report.plan.keep).train(training)(x))


@pytest.mark.parametrize("change", ["to a number in a buffer", "at a number in a buffer"])
def test_another_number_in_a_buffer_is_followed(change: str) -> None:
    model = Making(MADE[change]).eval()
    found = fxprune.compile(model, vector(3), 0.4, recover=None)
    plan = fxprune.report(found).plan
    assert plan is not None
    expected, x = masked(model, plan.keep), vector(3)
    for network in (found, expected):
        network.load_state_dict({**network.state_dict(), "count": torch.tensor(1)})
    torch.testing.assert_close(found(x), expected(x))


def test_a_number_in_a_buffer_that_the_forward_changes_is_no_literal() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 6)
            self.register_buffer("count", torch.tensor(0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.b(self.a(x).relu())[:, self.count]
            self.count += 1
            return out

    model = Counting().eval()
    with contextlib.suppress(FxpruneError):
        found = fxprune.compile(model, vector(3), 0.4, recover=None)
        plan = fxprune.report(found).plan
        assert plan is not None
        x, expected = vector(3), masked(model, plan.keep).eval()
        for _ in range(3):
            torch.testing.assert_close(found(x), expected(x))
