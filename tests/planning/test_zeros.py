"""``criterion="zeros"``: exactly the channels that are zero go, and no output changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import CriterionError, OptionError


class Mean(nn.Module):
    """A mean over channels, for which a zero is a value as any other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return self.b(x - x.mean(-1, keepdim=True))


def trained() -> nn.Sequential:
    torch.manual_seed(0)
    first, norm, second = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3)
    with torch.no_grad():
        for tensor in (first.weight, first.bias, norm.weight, norm.bias):
            tensor[[2, 6, 9]] = 0
        second.weight[:, 11] = 0  # nothing reads it
        second.weight[5] = second.bias[5] = 0
        first.weight[13] = 0  # it has a bias and a scale
    return nn.Sequential(first, norm, nn.ReLU(), second, nn.Flatten(), nn.Linear(8 * 16, 4)).eval()


def test_exactly_the_zeros_go() -> None:
    net, x = trained(), torch.randn(2, 3, 8, 8)
    pruned = fxprune.compile(net, x, criterion="zeros")
    plan = fxprune.report(pruned).plan
    assert plan is not None
    kept = [plan.keep[f"{name}.weight"][0] for name in "03"]
    assert [sorted({*range(n)} - {*k.tolist()}) for n, k in zip((16, 8), kept, strict=True)] == [[2, 6, 9, 11], [5]]
    assert "zeros: 5 of 24 channels were exactly zero" in fxprune.report(pruned).notes
    torch.testing.assert_close(pruned(x), net(x), rtol=0, atol=1e-6)


def test_where_nothing_is_zero_nothing_goes() -> None:
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), torch.randn(2, 4)
    assert fxprune.compile(net, x, criterion="zeros", keep_class=True)[0].weight.shape == (8, 4)


def test_zeros_with_an_effect_are_refused() -> None:
    net = Mean().eval()
    with torch.no_grad():
        net.a.weight[3] = net.a.bias[3] = 0
    with pytest.raises(CriterionError, match="have an effect"):
        fxprune.compile(net, torch.randn(2, 4), criterion="zeros")


def test_a_ratio_beside_it_is_refused() -> None:
    with pytest.raises(OptionError, match="leave out ratio"):
        fxprune.compile(trained(), torch.randn(2, 3, 8, 8), 0.5, criterion="zeros")


class Shifted(nn.Module):
    """Zero channels stay zero only for inputs of a small mean, or of a small sum of channels."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.how = nn.Linear(4, 8), nn.Linear(8, 2), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.a(x)
        if self.how == "shift":
            return self.b(made + torch.relu(x.mean(-1, keepdim=True) - 50))
        if self.how == "sign":
            return self.b(made + torch.relu(x.amin(-1, keepdim=True) - 1))
        return self.b(made) * torch.relu(made.sum(-1, keepdim=True) - 100)


@pytest.mark.parametrize("how", ["shift", "sign", "sum"])
def test_zeros_with_an_effect_on_other_inputs_than_the_sample_are_refused(how: str) -> None:
    net = Shifted(how).eval()
    with torch.no_grad():
        if how == "sum":
            net.b.weight[:, 3] = 0
        else:
            net.a.weight[3] = net.a.bias[3] = 0
    with pytest.raises(CriterionError, match="have an effect"):
        fxprune.compile(net, torch.randn(2, 4), criterion="zeros")


def test_rounding_of_large_products_is_no_effect() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.o = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.e(x)
            return self.o((30 * x @ x.transpose(1, 2)).softmax(-1) @ x)

    net = Attention().eval()
    with torch.no_grad():
        net.e.weight[3] = net.e.bias[3] = 0
    pruned = fxprune.compile(net.bfloat16(), torch.randn(2, 5, 6).bfloat16(), criterion="zeros")
    assert fxprune.report(pruned).groups[0].after == 15


def test_a_plan_alone_compares_no_outputs() -> None:
    with pytest.raises(OptionError, match="give it to compile"):
        fxprune.plan(trained(), torch.randn(2, 3, 8, 8), criterion="zeros")


def test_what_is_excluded_stays() -> None:
    net = trained()
    for exclude in (["0"], [net[0]]):
        pruned = fxprune.compile(net, torch.randn(2, 3, 8, 8), criterion="zeros", exclude=exclude)
        assert [len(pruned.get_parameter(f"{name}.weight")) for name in "03"] == [16, 7]


@pytest.mark.parametrize(
    "beside",
    [{"min_channels": 15}, {"round_to": 8}, {"recover": "bias"}, {"budget": "params"}, {"max_ratio": 0.1}],
)
def test_what_would_choose_among_zeros_is_refused(beside: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"leave out {min(beside)}"):
        fxprune.compile(trained(), torch.randn(2, 3, 8, 8), criterion="zeros", **beside)
