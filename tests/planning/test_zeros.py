"""``criterion="zeros"``: exactly the channels that are zero go, and no output changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.calibration.silence import HONEST
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


def test_exactly_the_zero_channels_are_removed() -> None:
    net, x = trained(), torch.randn(2, 3, 8, 8)
    pruned = fxprune.compile(net, x, criterion="zeros")
    plan = fxprune.report(pruned).plan
    assert plan is not None
    kept = [plan.keep[f"{name}.weight"][0] for name in "03"]
    assert [sorted({*range(n)} - {*k.tolist()}) for n, k in zip((16, 8), kept, strict=True)] == [[2, 6, 9, 11], [5]]
    assert "zeros: 5 of 24 channels were exactly zero" in fxprune.report(pruned).notes
    torch.testing.assert_close(pruned(x), net(x), rtol=0, atol=1e-6)


def silenced(conv: nn.Module, norm: nn.Module, channels: list[int]) -> None:
    """Filters and shifts of zero; the norm's scale stays."""
    with torch.no_grad():
        conv.weight[channels] = norm.bias[channels] = norm.running_mean[channels] = 0  # type: ignore


class Several(nn.Module):
    """A stream of two producers, a depthwise layer, a gate, a concatenation and a width behind a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.b, self.nb = nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.up, self.nu = nn.Conv2d(12, 10, 1, bias=False), nn.BatchNorm2d(10)
        self.deep, self.nd = nn.Conv2d(10, 10, 3, padding=1, groups=10, bias=False), nn.BatchNorm2d(10)
        self.gate, self.last = nn.Conv2d(10, 10, 1), nn.Conv2d(22, 6, 1)
        self.soft, self.out = nn.Linear(6, 8), nn.Linear(8, 3)
        for norm in (self.na, self.nb, self.nu, self.nd):
            nn.init.uniform_(norm.running_mean, 0.1, 1)
            nn.init.uniform_(norm.bias, 0.1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.na(self.a(x)).relu()
        x = (x + self.nb(self.b(x))).relu()
        y = nn.functional.hardswish(self.nd(self.deep(nn.functional.relu6(self.nu(self.up(x))))))
        y = y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid()
        x = self.last(nn.functional.max_pool2d(torch.cat([x, y], 1), 2)).mean((2, 3))
        return self.out(self.soft(x).sigmoid())


def test_channels_are_zero_by_what_they_hold() -> None:
    torch.manual_seed(0)
    net, x = Several().eval(), torch.randn(2, 3, 8, 8)
    silenced(net.a, net.na, [1, 4, 9])
    silenced(net.b, net.nb, [4, 9, 11])  # 4 and 9 of both
    silenced(net.up, net.nu, [0, 2, 7])
    silenced(net.deep, net.nd, [])
    with torch.no_grad():
        for tensor in (net.nd.running_mean, net.nd.bias):
            tensor[[2, 7]] = 0  # 0 is zero, and shifted behind the depthwise layer
        net.last.weight[5] = net.last.bias[5] = 0  # type: ignore[index]
        net.soft.weight[3] = net.soft.bias[3] = 0  # a half behind the sigmoid
    pruned = fxprune.compile(net, x, criterion="zeros")
    gone = {g.name: g.before - g.after for g in fxprune.report(pruned).groups if g.before > g.after}
    assert gone == {"a": 2, "up": 2, "last": 1}
    torch.testing.assert_close(pruned(x), net(x), rtol=0, atol=1e-6)


def test_a_scale_and_a_shift_of_zero_are_enough() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 2, 3)).eval()
    with torch.no_grad():
        net[1].weight[:3] = net[1].bias[:3] = 0
        net[0].bias[5] = -1e4  # below zero for every sample that comes along, and no zero
    pruned = fxprune.compile(net, torch.randn(2, 3, 8, 8), criterion="zeros", keep_class=True)
    assert pruned[0].out_channels == 5


@pytest.mark.parametrize("name", sorted(HONEST))
def test_zeros_that_cannot_be_derived_show_in_results(name: str) -> None:
    """The operators whose own answer is taken give NaN for it."""
    x = torch.ones(1, 4, 4, 4)
    x[0, 2] = float("nan")
    flat, deep = x.flatten(2), x[:, :, None]
    arguments: dict[str, tuple[Any, ...]] = {
        **dict.fromkeys("avg_pool2d _adaptive_avg_pool2d max_pool2d_with_indices".split(), (x, [2, 2])),
        **dict.fromkeys("avg_pool3d _adaptive_avg_pool3d max_pool3d_with_indices".split(), (deep, [1, 2, 2])),
        **dict.fromkeys("add sub rsub div copy".split(), (x, x[:, 2:3])),
        **dict.fromkeys("cat stack".split(), ([x, x],)),
        "avg_pool1d": (flat, [2]), "adaptive_max_pool2d": (x, [2, 2]),
        "_prelu_kernel": (x, x[:1, 1:2]),
        "amax": (x, [2, 3]), "amin": (x, [2, 3]), "clamp": (x, 0.0, 6.0), "clamp_min": (x, 0.0),
        "constant_pad_nd": (x, [1, 1]), "flip": (x, [1]), "roll": (x, [1], [1]), "repeat": (x, [2, 1, 1, 1]),
        "gather": (x, 1, torch.full((1, 1, 4, 4), 2)), "index": (x, [None, torch.tensor([2])]),
        "index_select": (x, 1, torch.tensor([2])), "mean": (x, [1]), "sum": (x, [1]), "pixel_shuffle": (x, 2),
        "pixel_unshuffle": (x, 2), "_unsafe_view": (x, [4, 16]), "upsample_nearest1d": (flat, [8]),
        "upsample_nearest2d": (x, [8, 8]), "upsample_nearest3d": (deep, [1, 8, 8]),
        "upsample_bilinear2d": (x, [8, 8], False), "upsample_bicubic2d": (x, [8, 8], False),
        "upsample_trilinear3d": (deep, [1, 8, 8], False),
    }  # fmt: skip
    found = getattr(torch.ops.aten, name)(*arguments.get(name, (x,)))
    found = found[0] if isinstance(found, tuple) else found
    given = sum(int(t.isnan().sum()) for t in arguments.get(name, (x,)) if isinstance(t, torch.Tensor))
    assert found.isnan().any()
    if found.shape == x.shape and given == 16 and name not in ("flip", "roll", "_unsafe_view"):
        assert torch.equal(found.isnan(), x.isnan())


def test_without_zeros_nothing_is_removed() -> None:
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


@pytest.mark.parametrize("how", ["shift", "sign"])
def test_zeros_that_change_before_they_are_read_stay(how: str) -> None:
    net, x = Shifted(how).eval(), torch.randn(2, 4)
    with torch.no_grad():
        net.a.weight[3] = net.a.bias[3] = 0
    pruned = fxprune.compile(net, x, criterion="zeros")
    assert torch.equal(pruned(99 * x.abs()), net(99 * x.abs()))


def test_zeros_with_an_effect_on_other_inputs_than_the_sample_are_refused() -> None:
    net = Shifted("sum").eval()
    with torch.no_grad():
        net.b.weight[:, 3] = 0
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


def test_excluded_layers_stay() -> None:
    net = trained()
    for exclude in (["0"], [net[0]]):
        pruned = fxprune.compile(net, torch.randn(2, 3, 8, 8), criterion="zeros", exclude=exclude)
        assert [len(pruned.get_parameter(f"{name}.weight")) for name in "03"] == [16, 7]


@pytest.mark.parametrize(
    "beside",
    [{"min_channels": 15}, {"round_to": 8}, {"recover": "bias"}, {"budget": "params"}, {"max_ratio": 0.1}],
)
def test_options_that_choose_among_zeros_are_refused(beside: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"leave out {min(beside)}"):
        fxprune.compile(trained(), torch.randn(2, 3, 8, 8), criterion="zeros", **beside)
