"""Branches on finiteness, and chance outside torch: training mode is right, or calls in it are refused."""

from __future__ import annotations

import copy
import random
import runpy
import warnings
from pathlib import Path

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
def test_calls_in_a_training_mode_of_other_chance_are_refused(network: type[Net], tmp_path: Path) -> None:
    result = pruned(network(), vector()).eval()
    (row,) = fxprune.report(result).opaque
    assert row.name == "the forward in training mode"
    fxprune.save(result, tmp_path / "saved")
    source: nn.Module = runpy.run_path(str(tmp_path / "saved" / "model.py"))["Model"]()
    source.load_state_dict(result.state_dict())
    x = vector()
    expected = result(x)
    for twin in (result, copy.deepcopy(result), fxprune.load(tmp_path / "saved"), source):
        with pytest.raises(RuntimeError, match=r"of which there is no graph \(training mode cannot be captured: "):
            twin.train()(x)
        twin.last.train(), twin.eval(), twin.first.train()
        torch.testing.assert_close(twin(x), expected)


class AlwaysNoise(NumpyNoise):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.between(self.first(x)))


def test_noise_of_numpy_in_eval_mode_is_no_constant() -> None:
    with pytest.raises(fxprune.errors.FxpruneError, match="numpy"):
        fxprune.compile(AlwaysNoise().eval(), vector(), 0.3)


class UnusedChance(Net):
    """Stochastic depth as it is often written: eval mode draws, too, and uses nothing of it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.last(x if random.random() < 0.3 and np.random.rand() < 0.9 and self.training else x * 2)


class DrawnUntilItFits(UnusedChance):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        random.normalvariate(0.0, 1.0)
        while np.random.rand() > 0.01:
            pass
        return super().forward(x)


@pytest.mark.parametrize("seed", [0, 1])  # the first number asks for the mode only with the second
@pytest.mark.parametrize("network", [UnusedChance, DrawnUntilItFits])
def test_draws_that_change_nothing_in_eval_mode_are_left_out(network: type[Net], seed: int) -> None:
    random.seed(seed), np.random.seed(seed)
    model, x = network().eval(), vector()
    result = pruned(model, x)
    assert [row.name for row in fxprune.report(result).opaque] == ["the forward in training mode"]
    torch.testing.assert_close(fxprune.compile(model, x, 0.0)(x), model(x))


class OneOfTen(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.last(x * 2 if random.randrange(10) == 7 or 0.4 < np.random.rand() < 0.47 else x)


class Stamped(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x) + torch.tensor([random.choice((1.0, 2.0))]))


@pytest.mark.parametrize("network", [OneOfTen, Stamped])
def test_draws_that_seldom_matter_are_found(network: type[Net]) -> None:
    random.seed(0), np.random.seed(0)
    with pytest.raises(fxprune.errors.FxpruneError, match=r"Python's random module, on which .*test_chance.py:\d+ dep"):
        fxprune.compile(network().eval(), vector(), 0.3)
