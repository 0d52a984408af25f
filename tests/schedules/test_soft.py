"""A silent network against the network built narrow, and what comes back when it is woken."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.errors import BudgetError, ModelError, OptionError, PlanError
from fxprune.schedules import SoftPruning
from tests.criteria.calibrated import Small, images

SAMPLE = images(2)[0]


class Gated(nn.Module):
    """Silence alone is not removal here: a sigmoid makes a half of a zero, and a batch norm has a shift."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv1, self.norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.head = nn.Conv2d(6, 5, 3), nn.Linear(5, 4)
        nn.init.normal_(self.norm.bias)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.softplus(self.conv2(self.norm(self.conv1(x)).sigmoid())).mean((2, 3)))


class Normed(nn.Module):
    def __init__(self, inner: int) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, inner), nn.Linear(inner, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(self.second(self.norm(self.first(x))))))


def train(model: nn.Module, steps: int = 2, rate: float = 0.05) -> None:
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    x, y = images(12)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y % 4).backward()
        optimizer.step()
    model.eval()


@pytest.mark.parametrize("model", [Small(), Gated()], ids=lambda model: type(model).__name__)
def test_a_silent_network_equals_the_compacted_one(model: nn.Module) -> None:
    schedule = SoftPruning(model, SAMPLE, 0.5, criterion="fpgm")
    x = images(8)[0]
    for _ in range(2):
        schedule.wake()
        train(model)
        plan = schedule.step()
        silent = model(x)
        pruned = fxprune.apply(model, SAMPLE, plan)
        torch.testing.assert_close(pruned(x), silent, rtol=1e-12, atol=1e-12)
    compact = schedule.compact()
    torch.testing.assert_close(compact(x), model(x), rtol=1e-12, atol=1e-12)
    assert sum(p.numel() for p in compact.parameters()) < sum(p.numel() for p in model.parameters())


def test_entries_that_are_zeroed_and_entries_that_are_restored() -> None:
    model = Small()
    before = copy.deepcopy(model.state_dict())
    schedule = SoftPruning(model, SAMPLE, 0.5, residual="inner")
    kept = list(schedule.step().groups["conv1"])
    gone = [index for index in range(12) if index not in kept]
    assert kept
    assert gone
    for tensor in (model.conv1.weight, model.bn1.weight, model.bn1.bias, model.bn1.running_mean):
        assert not tensor[gone].any()
        assert tensor[kept].all()
    assert torch.equal(model.bn1.running_var, before["bn1.running_var"])
    schedule.wake()
    filters = before.pop("conv1.weight"), before.pop("last.weight")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert not model.conv1.weight[gone].any()
    assert torch.equal(model.conv1.weight[kept], filters[0][kept])


def test_silenced_channels_get_gradients_again_and_may_come_back() -> None:
    model = Small()
    schedule = SoftPruning(model, SAMPLE, 0.5, residual="inner")
    first = schedule.step()
    gone = [index for index in range(12) if index not in first.groups["conv1"]]
    schedule.wake()
    train(model, steps=6, rate=0.5)
    assert model.conv1.weight[gone].any()
    assert schedule.step().groups != first.groups


def test_an_interrupted_run_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    whole, model = Small(), Small()

    def epochs(network: nn.Module, schedule: SoftPruning, until: int) -> None:
        while schedule.epoch < until:
            schedule.wake()
            train(network)
            schedule.step()

    epochs(whole, uninterrupted := SoftPruning(whole, SAMPLE, 0.5), 3)
    first = SoftPruning(model, SAMPLE, 0.5)
    epochs(model, first, 2)
    torch.save({"schedule": first.state_dict(), "model": model.state_dict()}, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    again = Small(seed=5)
    second = SoftPruning(again, SAMPLE, 0.5)
    again.load_state_dict(loaded["model"])
    second.load_state_dict(loaded["schedule"])
    epochs(again, second, 3)
    assert second.plan == uninterrupted.plan
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))


def test_groups_that_cross_a_norm_stay_whole() -> None:
    model, x = Normed(16).double(), torch.randn(5, 6, dtype=torch.float64)
    schedule = SoftPruning(model, x, 0.2)
    plan = schedule.step()
    assert schedule.kept_whole == ("first",)
    assert len(plan.groups["first"]) == 8
    assert len(plan.groups["up"]) < 16
    torch.testing.assert_close(schedule.compact()(x), model(x), rtol=1e-12, atol=1e-12)
    with pytest.raises(ModelError, match="no channels that can be silenced"):
        SoftPruning(nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 2)), x.float(), 0.2)


def test_mistakes() -> None:
    model = Small()
    options: dict[str, Any] = {"couplings": "drop"}
    with pytest.raises(OptionError, match="couplings"):
        SoftPruning(model, SAMPLE, 0.5, **options)
    schedule = SoftPruning(model, SAMPLE, 0.999)
    with pytest.raises(OptionError, match="call step"):
        _ = schedule.plan
    with pytest.raises(BudgetError):
        schedule.step()
    other = SoftPruning(Gated(), SAMPLE, 0.3)
    other.step()
    with pytest.raises(PlanError, match="another network"):
        schedule.load_state_dict(other.state_dict())
