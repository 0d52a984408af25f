"""What is zero but for rounding is told from what is merely small."""

from __future__ import annotations

import torch
from torch import nn

from fxprune.capture.samples import Sample
from fxprune.proof.comparing import leaves_of
from fxprune.proof.probes import Probe
from fxprune.proof.rounding import rounding_levels, without_rounding


class Outputs(nn.Module):
    """A mean that cancels, the same value scaled to nothing, and the value."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        h = self.layer(x)
        return {"cancelled": (h - h.mean(1, keepdim=True)).sum(1), "small": 1e-18 * h, "value": h}


def test_only_what_cancels_is_rounding() -> None:
    torch.manual_seed(0)
    net, x = Outputs().double().eval(), torch.randn(4, 6).double()
    answer = leaves_of(net(x))
    levels = rounding_levels(net, Probe("the sample", Sample((x,), {})), answer, torch.float64, seed=0)
    assert set(levels) == {"output['cancelled']"}
    assert levels["output['cancelled']"] < 1e-12


class Masked(Outputs):
    """The same, beside the least of all numbers."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        lowest = torch.full_like(x[:, :1], torch.finfo(x.dtype).min)
        return {**super().forward(x), "weights": torch.cat((self.layer(x), lowest), 1).softmax(1)}


def test_a_huge_number_elsewhere_does_not_make_everything_rounding() -> None:
    torch.manual_seed(0)
    net, x = Masked().double().eval(), torch.randn(4, 6).double()
    levels = rounding_levels(net, Probe("the sample", Sample((x,), {})), leaves_of(net(x)), torch.float64, seed=0)
    assert set(levels) == {"output['cancelled']"}
    assert levels["output['cancelled']"] < 1e-11


def test_a_value_that_is_rounding_in_one_network_only_is_compared() -> None:
    levels = {"output": 1e-13}
    zero, one = {"output": torch.full((2,), 1e-15)}, {"output": torch.full((2,), 1e-3)}
    assert without_rounding(zero, {"output": -zero["output"]}, levels) == ({}, {})
    assert without_rounding(zero, one, levels) == (zero, one)
    assert without_rounding(one, zero, levels) == (one, zero)
    assert without_rounding(zero, {"output": torch.zeros(3)}, levels)[0] == zero
