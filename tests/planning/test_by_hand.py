"""Channels, layers and shares that are chosen by hand; plans read back to the original's sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import BudgetError, ExcludeError, OptionError, PlanError


class Net(nn.Module):
    """A stem, a residual block, a packed projection of two heads and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1, self.conv2 = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 1)
        self.norm, self.heads, self.out = nn.BatchNorm2d(12), nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv2(self.norm(self.conv1(x)).relu())
        q = self.heads(x.mean((2, 3))).reshape(x.shape[0], 2, 3)
        return self.out((q * 2).flatten(1))


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


SAMPLE = torch.randn(2, 3, 6, 6)


def narrowed(net: Net, gone: list[int]) -> Net:
    """The network built without channels of conv1, from scratch."""
    stay = [i for i in range(12) if i not in gone]
    small = Net().eval()
    small.load_state_dict(net.state_dict())
    width = len(stay)
    small.conv1, small.norm = nn.Conv2d(8, width, 3, padding=1), nn.BatchNorm2d(width)
    small.conv2 = nn.Conv2d(width, 8, 1)
    with torch.no_grad():
        for new, old in ((small.conv1, net.conv1), (small.norm, net.norm)):
            for name, value in new.state_dict().items():
                if value.ndim:
                    value.copy_(old.state_dict()[name][stay])
        small.conv2.weight.copy_(net.conv2.weight[:, stay])
        small.conv2.bias.copy_(net.conv2.bias)  # type: ignore[union-attr, arg-type]
    return small.eval()


@pytest.mark.parametrize(
    "given",
    [[2, 6, 9], (9, 2, 6, 6), np.array([2, 6, 9]), torch.tensor([2, 6, 9]), np.isin(np.arange(12), [2, 6, 9])],
    ids=["list", "tuple", "array", "tensor", "mask"],
)
def test_chosen_channels_are_removed_with_all_that_is_tied_to_them(net: Net, given: Any) -> None:
    pruned = fxprune.remove(net, SAMPLE, {"conv1": given})
    expected = narrowed(net, [2, 6, 9])
    torch.testing.assert_close(pruned(SAMPLE), expected(SAMPLE))
    assert shapes(pruned) == shapes(expected)
    report = fxprune.report(pruned)
    assert report.proof is not None
    assert report.settings["channels"] == {"conv1": [2, 6, 9]}
    assert "nan" not in str(report).lower()
    assert "asked" not in str(report).splitlines()[0]


def test_several_layers_and_modules(net: Net) -> None:
    pruned = fxprune.remove(net, SAMPLE, {net.conv1: [0], "norm": [1], "conv2": [3], net.stem: [3, 4]}, verify=False)
    plan = fxprune.report(pruned).plan
    assert plan is not None
    # What conv2 makes is added to what the stem makes: the same channels of both go.
    assert set(range(8)) - set(plan.groups["stem"]) == {3, 4}
    assert set(range(12)) - set(plan.groups["conv1"]) == {0, 1}
    assert fxprune.report(fxprune.apply(net, SAMPLE, plan)).proof is not None


def test_whole_heads_are_removed_and_single_channels_of_them_are_not(net: Net) -> None:
    pruned = fxprune.remove(net, SAMPLE, {"heads": [3, 4, 5]})
    assert pruned.heads.out_features == 3
    across = fxprune.remove(net, SAMPLE, {"heads": [1, 4]})
    assert across.heads.out_features == 4
    with pytest.raises(PlanError, match="channel 4 of 'heads' cannot go alone: it goes with all of 3-5 or of 1,4"):
        fxprune.remove(net, SAMPLE, {"heads": [4]})


@pytest.mark.parametrize(
    ("channels", "kind", "words"),
    [
        ({"conv9": [0]}, OptionError, "no layer 'conv9'.* there are stem, conv1"),
        ({"conv1": [12]}, OptionError, "indices from 0 to 11"),
        ({"conv1": [-1]}, OptionError, "indices from 0 to 11"),
        ({"conv1": [0.5]}, OptionError, "indices from 0 to 11"),
        ({"conv1": [True] * 5}, OptionError, "boolean mask of 12"),
        ({"conv1": range(12)}, PlanError, "nothing would be left of 'conv1'"),
        ({"out": [0]}, PlanError, "channels of 'out' stay: it is a dim of the network's output"),
        ({nn.Linear(2, 2): [0]}, OptionError, "a Linear that is no part of the model"),
    ],
)
def test_channels_that_must_stay_are_refused(net: Net, channels: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        fxprune.remove(net, SAMPLE, channels)


def test_nothing_to_remove_is_an_equal_copy(net: Net) -> None:
    assert torch.equal(fxprune.remove(net, SAMPLE, {"conv1": [], "out": []})(SAMPLE), net(SAMPLE))


def test_shares_of_layers_modules_and_limits(net: Net) -> None:
    ratio = {"conv1": 0.4, net.stem: 0.25}
    plan = fxprune.plan(net, SAMPLE, ratio, exclude=[net.heads], min_channels={"stem": 6})
    assert {name: len(kept) for name, kept in plan.groups.items()} == {
        "stem": 6,
        "conv1": 7,
        "heads/0": 2,
        "heads/1": 3,
    }
    report = fxprune.report(fxprune.apply(net, SAMPLE, plan))
    assert report.ratio is None
    with pytest.raises(ExcludeError, match="matches no parameter"):
        fxprune.plan(net, SAMPLE, 0.2, exclude=["nothing"])
    with pytest.raises(OptionError, match="exclude names a Linear that is no part"):
        fxprune.plan(net, SAMPLE, 0.2, exclude=[nn.Linear(2, 2)])
    with pytest.raises(BudgetError, match="of the channels of 'conv1' is out of reach"):
        fxprune.plan(net, SAMPLE, {"conv1": 0.5}, max_ratio={net.conv1: 0.25})


def test_several_budgets_in_one_call(net: Net) -> None:
    for plan in (
        fxprune.plan(net, SAMPLE, budget={"macs": 0.3, "params": 0.4}),
        fxprune.plan(net, SAMPLE, {"macs": 0.3, "params": 0.4}),
    ):
        report = fxprune.report(fxprune.apply(net, SAMPLE, plan))
        assert [(row.budget, row.asked) for row in report.goals] == [("macs", 0.3), ("params", 0.4)]
        assert report.macs_after <= 0.7 * report.macs_before
        assert report.parameters_after <= 0.6 * report.parameters_before
        title = str(report).splitlines()[0]
        assert "30.0 % asked" in title
        assert "40.0 %" in title
        assert type(report).from_dict(report.as_dict(), plan=plan) == report


def test_a_pruned_state_at_full_size(net: Net) -> None:
    pruned = fxprune.remove(net, SAMPLE, {"conv1": [2, 6, 9], "heads": [3, 4, 5]})
    plan = fxprune.report(pruned).plan
    assert plan is not None
    full = plan.expand(pruned.state_dict())
    masked = {name: torch.zeros_like(value) for name, value in net.state_dict().items()}
    for name, value in net.state_dict().items():
        kept = np.ix_(*(range(n) if k is None else k for n, k in zip(value.shape, plan.keep[name], strict=True)))
        masked[name][kept] = value[kept]
    assert full.keys() == masked.keys()
    for name, value in masked.items():
        assert torch.equal(full[name], value), name
    wide = Net().eval()
    wide.load_state_dict(full)
    torch.testing.assert_close(wide(SAMPLE), pruned(SAMPLE))
    with pytest.raises(PlanError, match="the plan leaves"):
        plan.expand(net.state_dict())
    for bad in (None, [1], {"a.weight": 3}):
        with pytest.raises(PlanError, match="a state dict maps names to tensors"):
            plan.expand(bad)  # type: ignore[arg-type]


def test_plans_and_reports_print_briefly(net: Net) -> None:
    model = nn.Sequential(*(layer for _ in range(80) for layer in (nn.Linear(16, 16), nn.ReLU())), nn.Linear(16, 2))
    plan = fxprune.plan(model.eval(), torch.randn(1, 16), 0.3)
    assert len(str(plan).splitlines()) <= 60
    assert "more groups" in str(plan)
    assert len(repr(plan)) < 100
    report = fxprune.report(fxprune.apply(net, SAMPLE, fxprune.plan(net, SAMPLE, 0.3)))
    assert len(repr(report)) < 100
    for shown in (plan, report):
        html = shown._repr_html_()
        assert html.startswith("<pre>")
        assert "<Plan" not in html
