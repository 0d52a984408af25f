"""Fusion of channels that are copies, and batch norm statistics measured by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.recovery import BatchNorm
from tests.recovery.test_reconstruct import half


class Copies(nn.Module):
    """Filters 3 to 5 are those of 2, 0 and 1, times a factor above zero; behind a batch norm where there is one."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, bias=not norm), nn.BatchNorm2d(6) if norm else nn.Identity()
        self.second = nn.Linear(6 * 9, 4)
        self.double().eval()
        factors = torch.tensor([2.0, 0.5, 1.5], dtype=torch.float64)
        with torch.no_grad():
            self.first.weight[3:] = self.first.weight[[2, 0, 1]] * factors.view(3, 1, 1, 1)
            if norm:
                self.norm.running_mean[:3].normal_()
                self.norm.running_mean[3:] = self.norm.running_mean[[2, 0, 1]] * factors
            else:
                self.first.bias[3:] = self.first.bias[[2, 0, 1]] * factors

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.norm(self.first(x))).flatten(1))


@pytest.mark.parametrize("norm", [True, False])
def test_copies_fuse_exactly_without_data(norm: bool) -> None:
    model = Copies(norm)
    x = torch.randn(8, 3, 5, 5, dtype=torch.float64)
    back = half(model, x, recover="fuse")
    assert back.first.out_channels == 3
    torch.testing.assert_close(back(x), model(x), rtol=0, atol=1e-10)
    assert fxprune.report(back).recovery[0].changed == ("second.weight",)


class Norms(nn.Module):
    """Two batch norms in a row of convolutions, one behind an activation that is written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn1 = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.second, self.bn2 = nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.bn1(self.first(x)))
        return self.head(F.relu(self.bn2(self.second(x))).mean((2, 3)))


@pytest.mark.parametrize("size", [4, 32])
@pytest.mark.parametrize("training", [True, False])
def test_statistics_are_those_measured_by_hand(size: int, training: bool) -> None:
    model = Norms()
    x = torch.randn(32, 3, 7, 7, dtype=torch.float64)
    # Sums of positive parts, as they are measured on the data: what is cut takes a share of every mean away.
    model.second.weight.data.abs_()
    for norm in (model.bn1, model.bn2):
        norm.momentum = 1.0
    model.train()(x)
    model.train(training)
    back = half(model, x, calibration=list(x.split(size)), recover=BatchNorm())
    assert back.training == training
    back.eval()
    first = back.first(x)
    middle = F.relu(back.bn1(first))
    for values, norm in ((first, back.bn1), (back.second(middle), back.bn2)):
        torch.testing.assert_close(norm.running_mean, values.mean((0, 2, 3)), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(norm.running_var, values.var((0, 2, 3)), rtol=1e-9, atol=1e-12)


def test_the_report_says_what_was_done_and_is_saved() -> None:
    model = Norms()
    x = torch.randn(16, 3, 7, 7, dtype=torch.float64)
    back = half(model, x, calibration=[x], recover=["reconstruct", "batchnorm"])
    found = fxprune.report(back)
    assert [row.method for row in found.recovery] == ["reconstruct", "batchnorm"]
    assert found.proof is not None
    assert "reconstruct, after the proof" in str(found)
    again = fxprune.Report.from_dict(found.as_dict())
    assert again.recovery == found.recovery
