"""Models in unusual states: narrow types, other layouts, frozen, stateful, random, under modes of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune import errors
from tests.refusing import refused, small_net
from tests.snapshots import process, snapshot


def image(**options: Any) -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, **options)


def proven(model: nn.Module, sample: torch.Tensor, **options: Any) -> nn.Module:
    """Compile, and check that the original and the process are as they were and that there is a proof."""
    compile_ = fxprune.compile  # what this imports is not what is looked at
    before, around = snapshot(model), process()
    pruned = compile_(model, sample, 0.4, **options)
    assert snapshot(model) == before
    assert process() == around
    report = fxprune.report(pruned)
    assert report.achieved >= 0.4
    assert report.proof is not None
    assert report.proof.relative_error <= 1e-9
    return pruned


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_stay(dtype: torch.dtype) -> None:
    pruned = proven(small_net().to(dtype), image().to(dtype))
    assert pruned(image().to(dtype)).dtype is dtype
    assert {p.dtype for p in pruned.parameters()} == {dtype}


def test_float8_is_refused() -> None:
    model = small_net()
    model[0].weight = nn.Parameter(model[0].weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    refused(errors.ModelError, "0 .Conv2d. holds torch.float8_e4m3fn", model, image())


def test_a_batch_of_nothing_is_refused() -> None:
    refused(errors.SampleError, "batch of 0", small_net(), image()[:0])


def test_channels_last_stays() -> None:
    sample = image().to(memory_format=torch.channels_last)
    pruned = proven(small_net().to(memory_format=torch.channels_last), sample)
    weights = [p for p in pruned.parameters() if p.dim() == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    assert all(not p.is_contiguous() for p in weights)


def test_channels_last_of_volumes_stays() -> None:
    model = nn.Sequential(nn.Conv3d(2, 8, 3), nn.ReLU(), nn.Conv3d(8, 4, 3)).to(memory_format=torch.channels_last_3d)
    pruned = proven(model.eval(), torch.randn(2, 2, 6, 6, 6))
    weights = [p for p in pruned.parameters() if p.dim() == 5]
    assert all(p.is_contiguous(memory_format=torch.channels_last_3d) for p in weights)


def test_frozen_parameters_stay_frozen() -> None:
    model = small_net().requires_grad_(False)
    model[0].bias.requires_grad_(True)
    pruned = proven(model, image())
    assert {n for n, p in pruned.named_parameters() if p.requires_grad} == {"0.bias"}


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_without_gradients(mode: Callable[[], Any], criterion: str) -> None:
    model = small_net()
    batches = [(image(), torch.zeros(2, dtype=torch.int64))]
    with mode():
        pruned = proven(model, image(), criterion=criterion, calibration=batches)
    pruned.train()(image()).sum().backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())


def test_a_model_and_data_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model, sample = small_net(), image()
        batches = [(image(), torch.zeros(2, dtype=torch.int64))]
    pruned = proven(model, sample, criterion="taylor", calibration=batches)
    assert not any(parameter.is_inference() for parameter in pruned.parameters())


def test_autocast_around_it_changes_nothing() -> None:
    model, sample = small_net(), image()
    alone = proven(model, sample)
    with torch.autocast("cpu", torch.bfloat16):
        inside = proven(model, sample)
    assert fxprune.report(alone).plan == fxprune.report(inside).plan
    assert {p.dtype for p in inside.parameters()} == {torch.float32}


def test_deterministic_algorithms() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        proven(small_net(), image())
    finally:
        torch.use_deterministic_algorithms(False)


def test_literals_on_parameters_stay_for_optimisers_that_read_them() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
    vars(model[0].weight)["no_weight_decay"], vars(model[2].bias)["rate"] = True, 0.1
    pruned = fxprune.compile(model, torch.randn(1, 3, 8, 8), 0.5)
    weight, bias = pruned.get_parameter("0.weight"), pruned.get_parameter("2.bias")
    assert len(weight) < 16
    assert vars(weight) == {"no_weight_decay": True}
    assert vars(bias) == {"rate": 0.1}


def test_structure_alone_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = small_net()
    pruned = fxprune.compile(model, image(device="meta"), 0.4)
    assert {p.device.type for p in pruned.parameters()} == {"meta"}
    assert fxprune.report(pruned).unproven == "structural, unproven"


def test_the_same_model_twice() -> None:
    model = small_net()
    first, second = proven(model, image()), proven(model, image())
    assert first.code == second.code
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not {p.data_ptr() for p in first.parameters()} & {p.data_ptr() for p in second.parameters()}


# -- forwards that a graph cannot tell --------------------------------------------------------------------------------


class Two(nn.Module):
    """Two layers and something in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)
        self.calls = 0
        self.register_buffer("average", torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.between(self.first(x)))

    def between(self, h: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class Random(Two):
    """Adds a random number."""

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h + torch.rand(1)


class Counting(Two):
    """Multiplies by the number of calls so far."""

    def between(self, h: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return h * self.calls


class Averaging(Two):
    """Gives its buffer a new tensor with each call and reads it."""

    def between(self, h: torch.Tensor) -> torch.Tensor:
        self.average = 0.9 * self.average + h.detach().mean(0)
        return h + self.average


class Toggling(Two):
    """Takes every other branch."""

    def between(self, h: torch.Tensor) -> torch.Tensor:
        self.calls = 1 - self.calls
        return h.relu() if self.calls else h


class Printing(Two):
    """Talks."""

    def between(self, h: torch.Tensor) -> torch.Tensor:
        print("hidden", tuple(h.shape))
        return h.tanh()


@pytest.mark.parametrize("model", [Random(), Printing(), Averaging()], ids=lambda m: type(m).__name__)
def test_random_numbers_prints_and_buffers_do_no_harm(model: nn.Module) -> None:
    proven(model, torch.randn(2, 8))


@pytest.mark.parametrize("model", [Counting(), Toggling()], ids=lambda m: type(m).__name__)
def test_state_that_a_graph_cannot_tell_is_refused(model: nn.Module) -> None:
    refused(
        errors.CaptureError, "the forward reads 'calls' of the model, which it changes itself", model, torch.randn(2, 8)
    )
