"""Branches on finiteness, and chance outside torch: training mode is right, or eval mode's graph and a warning."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxprune
from tests.capture.compiled import pruned, vector


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.dropout(self.first(x), 0.5, self.training)
        return self.last(self.between(x) if self.training else x)

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Clamped(Net):
    def between(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.isfinite(x).all() or (x.isnan() | x.isinf()).any():
            x = x.clamp(-100, 100)
        return x * 2


def test_values_are_taken_to_be_finite_and_checked() -> None:
    model = Clamped()
    result = pruned(model, vector())
    assert fxprune.report(result).opaque == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result.train()
    copy, x = fxprune.compile(model, vector(), 0.0).train(), torch.randn(5, 8)
    torch.manual_seed(3)
    expected = model.train()(x)
    torch.manual_seed(3)
    torch.testing.assert_close(copy(x), expected)
    copy(x).sum().backward()
    with pytest.raises(AssertionError, match=r"made for finite values, and .*test_chance\.py"):
        result(torch.full((2, 8), torch.inf))


class NumpyNoise(Net):
    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.from_numpy(np.random.rand(x.shape[1])).float()


class PythonChance(Net):
    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if random.random() < 0.5 else x


class LayerDrop(Net):
    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x if torch.rand(()) < 0.5 else x * 2


@pytest.mark.parametrize("network", [NumpyNoise, PythonChance, LayerDrop])
def test_a_training_mode_of_other_chance_is_that_of_eval_and_says_so(network: type[Net]) -> None:
    result = pruned(network(), vector())
    (row,) = fxprune.report(result).opaque
    assert row.name == "the forward in training mode"
    x = vector()
    expected = result(x)
    with pytest.warns(UserWarning, match="training mode runs the graph of eval mode"):
        result.train()
    assert torch.equal(result(x), expected)


class AlwaysNoise(NumpyNoise):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.between(self.first(x)))


def test_noise_of_numpy_in_eval_mode_is_no_constant() -> None:
    with pytest.raises(fxprune.errors.FxpruneError, match="numpy"):
        fxprune.compile(AlwaysNoise().eval(), vector(), 0.3)
