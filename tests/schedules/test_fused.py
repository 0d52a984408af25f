"""Fused training against narrow networks written by hand, and worked numbers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.criteria.information_fusion import fused_filters, temperature_at
from fxprune.errors import CriterionError, OptionError, PlanError
from fxprune.schedules import FusedTraining
from tests.criteria.calibrated import Small, images

SAMPLE = images(2)[0]


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    x, y = images(12)
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
    network.eval()


def run(schedule: FusedTraining, optimizer: torch.optim.Optimizer, until: int) -> None:
    while schedule.epoch < until:
        schedule.step()
        train(schedule.network, optimizer)


@pytest.mark.parametrize(
    "given",
    [
        {"rates": {"conv1": 0.5, "last": 0.34}},
        {"rates": {"stem": 0.25, "conv1": 0.5}, "kappa": 0.5},
        {"ratio": 0.5, "beta": 0.5, "fusion": "residual"},
        {"plan": fxprune.plan(Small(), SAMPLE, 0.5)},
    ],
    ids=["rates", "coupled", "ratio", "plan"],
)
def test_the_compacted_network_equals_the_trained_one(given: dict[str, Any]) -> None:
    model = Small()
    before = copy.deepcopy(model.state_dict())
    schedule = FusedTraining(model, SAMPLE, epochs=4, **given)
    run(schedule, torch.optim.SGD(schedule.network.parameters(), 0.05, momentum=0.9), 4)
    pruned = schedule.compact()
    x = images(8)[0]
    torch.testing.assert_close(pruned(x), schedule.network(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(copy.deepcopy(schedule.network)(x), schedule.network(x), rtol=0, atol=0)
    plan = fxprune.report(pruned).plan
    narrow = fxprune.apply(model, SAMPLE, plan)
    assert {n: t.shape for n, t in pruned.state_dict().items()} == {n: t.shape for n, t in narrow.state_dict().items()}
    assert not any("parametrizations" in name for name in pruned.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    if "ratio" in given:
        assert fxprune.report(pruned).achieved >= 0.5


class Narrow(nn.Module):
    """``Small`` with 5 filters in conv1, each a mixture of 12 that are trained."""

    def __init__(self, model: Small) -> None:
        super().__init__()
        self.net = copy.deepcopy(model)
        self.filters = nn.Parameter(model.conv1.weight.detach().clone())
        self.shares = torch.zeros(5, 12, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        x = F.relu(net.bn0(net.stem(x)))
        y = F.conv2d(x, torch.einsum("mn,n...->m...", self.shares, self.filters), padding=1)
        y = F.relu(net.bn1(y))
        x = F.relu(x + net.bn2(net.conv2(y)))
        return net.head(F.relu(net.last(x)).flatten(1))


def test_training_is_that_of_a_network_written_by_hand() -> None:
    model = Small()
    schedule = FusedTraining(model, SAMPLE, epochs=3, rates={"conv1": 0.58}, kappa=0.1, end=5.0)
    twin = Narrow(model)
    kept = list(schedule.plan.groups["conv1"])
    assert len(kept) == 5
    net = twin.net
    net.bn1.weight.data, net.bn1.bias.data = net.bn1.weight.data[kept], net.bn1.bias.data[kept]
    net.bn1.running_mean, net.bn1.running_var = net.bn1.running_mean[kept], net.bn1.running_var[kept]
    net.conv2.weight.data = net.conv2.weight.data[:, kept]
    optimizers = [torch.optim.SGD(n.parameters(), 0.05, momentum=0.9) for n in (schedule.network, twin)]
    for epoch in range(3):
        schedule.step()
        temperature = temperature_at(epoch, 3, end=5.0, kappa=0.1)
        assert schedule.temperature == temperature
        index = list(schedule.plan.groups["conv1"])
        distances = torch.cdist(twin.filters.detach().flatten(1), twin.filters.detach().flatten(1))
        similar = torch.softmax(-distances * temperature, dim=1)
        importance = (similar.unsqueeze(1) * (similar.unsqueeze(1) / similar).log()).sum((1, 2))
        assert sorted(importance.argsort(descending=True)[:5].tolist()) == index
        twin.shares = similar[index]
        for network, optimizer in zip((schedule.network, twin), optimizers, strict=True):
            train(network, optimizer)
    x = images(8)[0]
    torch.testing.assert_close(schedule.network(x), twin(x), rtol=1e-6, atol=1e-8)


def test_worked_numbers() -> None:
    """Filters [1,0], [1,0], [0,1], [-2,0] at temperature 1, of which three stay."""
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0], [1, 0], [0, 1], [-2, 0]]))
        model[0].bias.copy_(torch.tensor([1.0, 2, 3, 4]))
    schedule = FusedTraining(model, torch.randn(3, 2, dtype=torch.float64), epochs=3, rates={"0": 0.25})
    pruned = schedule.compact()
    expected = torch.tensor([[0.828829, 0.106030], [0.171035, 0.627702], [-1.575219, 0.088589]], dtype=torch.float64)
    assert schedule.plan.groups["0"] == (0, 2, 3)
    torch.testing.assert_close(pruned.get_submodule("0").weight.detach(), expected, rtol=0, atol=1e-6)
    shares = torch.tensor([0.436128, 0.436128, 0.106030, 0.021714], dtype=torch.float64)
    bias = pruned.get_submodule("0").bias.detach()
    assert float(bias[0]) == pytest.approx(float(shares @ torch.tensor([1.0, 2, 3, 4], dtype=torch.float64)), abs=1e-5)


def test_published_rates_are_rounded_down() -> None:
    sizes = (64, 128, 256, 512)
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in zip((3, *sizes), (*sizes, 10), strict=True)))
    rates = {"0": 0.5, "1": 0.4, "2": 0.35, "3": 0.85}
    schedule = FusedTraining(model, torch.randn(2, 3), epochs=2, rates=rates, verify=False)
    assert [len(schedule.plan.groups[name]) for name in "0123"] == [32, 76, 166, 76]


def test_coupled_layers_share_their_mixture() -> None:
    model = Small()
    schedule = FusedTraining(model, SAMPLE, epochs=2, rates={"stem": 0.5}, beta=0.7)
    kept = list(schedule.plan.groups["stem"])
    side_by_side = torch.cat([model.stem.weight.flatten(1), model.conv2.weight.flatten(1)], dim=1)
    pruned = schedule.compact()
    for name in ("stem", "conv2"):
        expected = fused_filters(model.get_submodule(name).weight, kept, 1.0, 0.7, compared=side_by_side)
        torch.testing.assert_close(pruned.get_submodule(name).weight.detach(), expected)


def test_an_interrupted_run_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    def started() -> tuple[FusedTraining, torch.optim.Optimizer]:
        schedule = FusedTraining(Small(), SAMPLE, epochs=4, rates={"conv1": 0.5, "stem": 0.5}, kappa=0.3)
        return schedule, torch.optim.SGD(schedule.network.parameters(), 0.05, momentum=0.9)

    whole, optimizer = started()
    run(whole, optimizer, 4)
    first, optimizer = started()
    run(first, optimizer, 2)
    state = {"s": first.state_dict(), "n": first.network.state_dict(), "o": optimizer.state_dict()}
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    second, optimizer = started()
    second.network.load_state_dict(loaded["n"])
    optimizer.load_state_dict(loaded["o"])
    second.load_state_dict(loaded["s"])
    run(second, optimizer, 4)
    assert second.plan == whole.plan
    pairs = zip(whole.compact().state_dict().values(), second.compact().state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


class Upsampled(nn.Module):
    """The second width comes from a transposed convolution, whose filters are no rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up, self.head = nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 2), nn.Conv2d(4, 2, 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.first(x).relu()).relu())


def test_depthwise_convolutions_are_fused_with_what_feeds_them() -> None:
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 2, 1)).double()
    schedule = FusedTraining(model, x, epochs=2, rates={"0": 0.5})
    torch.testing.assert_close(schedule.compact()(x), schedule.network(x), rtol=1e-12, atol=1e-12)
    with pytest.raises(OptionError, match="cannot be fused"):
        FusedTraining(Upsampled(), x, epochs=2, rates={"up": 0.5})
    # By ratio, what cannot be fused stays whole.
    widths = FusedTraining(Upsampled(), x, epochs=2, ratio=0.1).plan.groups
    assert len(widths["up"]) == 4
    assert len(widths["first"]) < 8


def test_mistakes() -> None:
    model = Small()
    given: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({}, OptionError, "exactly one"),
        ({"rates": {"conv1": 0.5}, "ratio": 0.5}, OptionError, "exactly one"),
        ({"rates": {"conv9": 0.5}}, OptionError, "no layer with prunable channels is called 'conv9'"),
        ({"rates": {"conv1": 1.0}}, OptionError, "0 <= rate < 1"),
        ({"rates": {"stem": 0.5, "conv2": 0.25}}, OptionError, "its layers are coupled"),
        ({"rates": {"conv1": 0.0}}, OptionError, "no layer would become narrower"),
        ({"ratio": 0.5, "beta": 2.0}, CriterionError, "between 0 and 1"),
        ({"ratio": 0.5, "fusion": "sum"}, CriterionError, "proxy"),
        ({"ratio": 0.5, "kappa": 0.0}, OptionError, "kappa must be above 0"),
        (
            {"plan": fxprune.plan(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(2, 3), 0.2)},
            PlanError,
            "another network",
        ),
    ]
    for options, error, message in given:
        with pytest.raises(error, match=message):
            FusedTraining(model, SAMPLE, epochs=2, **options)
    with pytest.raises(OptionError, match="epochs must be"):
        FusedTraining(model, SAMPLE, epochs=0, ratio=0.5)
    schedule = FusedTraining(model, SAMPLE, epochs=2, ratio=0.5)
    with pytest.raises(OptionError, match="other epochs"):
        schedule.load_state_dict(FusedTraining(model, SAMPLE, epochs=3, ratio=0.5).state_dict())
