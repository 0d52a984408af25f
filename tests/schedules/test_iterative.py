"""Several steps against one plan for the original, and against themselves after an interruption."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.errors import BudgetError, OptionError, PlanError
from fxprune.planning.composing import composed
from fxprune.schedules import FusedTraining, IterativePruning, Polarization, SoftPruning, SparseTraining, ratio_at
from tests.criteria.calibrated import Small, batches, images

SAMPLE = images(2)[0]


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    x, y = images(12)
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
    network.eval()


def run(schedule: IterativePruning, network: nn.Module, optimizer: Any, until: int = 99) -> tuple[nn.Module, Any]:
    while not schedule.finished and schedule.done < until:
        network, optimizer = schedule.step(network, optimizer)
        train(network, optimizer)
    return network, optimizer


def started(**options: Any) -> tuple[IterativePruning, nn.Module, torch.optim.Optimizer]:
    model = Small()
    schedule = IterativePruning(model, SAMPLE, 0.6, steps=3, **options)
    return schedule, model, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)


SCHEDULES: list[Callable[[], Any]] = [
    lambda: IterativePruning(Small(), SAMPLE, 0.6, steps=3),
    lambda: SoftPruning(Small(), SAMPLE, 0.3),
    lambda: SparseTraining(Small()),
    lambda: Polarization(Small()),
    lambda: FusedTraining(Small(), SAMPLE, ratio=0.3, epochs=3),
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"shape": "cubic", "budget": "params", "residual": "inner"},
    {"shape": "geometric", "criterion": "filter_similarity"},
    {"scope": "uniform", "budget": "channels"},
    {"criterion": "taylor", "calibration": batches()},
]


@pytest.mark.parametrize("options", OPTIONS, ids=["linear", "cubic", "geometric", "uniform", "taylor"])
def test_every_step_meets_the_ratio_of_the_original(options: dict[str, Any]) -> None:
    schedule, model, optimizer = started(**options)
    network: nn.Module = model
    original = copy.deepcopy(model.state_dict())
    for step in range(1, 4):
        previous = schedule.plan
        network, optimizer = schedule.step(network, optimizer)
        report = fxprune.report(network)
        assert report.achieved >= ratio_at(step, 3, 0.6, options.get("shape", "linear"))
        assert report.plan == schedule.plan
        assert (report.network, report.proof is not None) == ("Small", True)
        assert all(set(schedule.plan.groups[n]) <= set(kept) for n, kept in previous.groups.items())
        if step < 3:
            train(network, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(original.values(), model.state_dict().values(), strict=True))
    narrow = fxprune.apply(model, SAMPLE, schedule.plan)
    assert {n: t.shape for n, t in narrow.state_dict().items()} == {n: t.shape for n, t in network.state_dict().items()}


def test_without_training_the_steps_remove_what_one_plan_removes() -> None:
    model = Small()
    schedule = IterativePruning(model, SAMPLE, 0.6, steps=3)
    network: nn.Module = model
    while not schedule.finished:
        network, _ = schedule.step(network)
    narrow = fxprune.apply(model, SAMPLE, schedule.plan)
    for name, value in network.state_dict().items():
        assert torch.equal(value, narrow.state_dict()[name]), name
    x = images(4)[0]
    torch.testing.assert_close(network(x), narrow(x), rtol=0, atol=0)


def test_an_interrupted_run_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    whole, model, optimizer = started()
    original = copy.deepcopy(model)
    expected, _ = run(whole, *copy.deepcopy((model, optimizer)))
    first, _, _ = started()
    network, optimizer = run(first, model, optimizer, until=2)
    state = {"schedule": first.state_dict(), "network": network.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    second = IterativePruning(original, SAMPLE, 0.6, steps=3)
    second.load_state_dict(loaded["schedule"])
    again = fxprune.apply(original, SAMPLE, second.plan)
    again.load_state_dict(loaded["network"])
    going_on = torch.optim.SGD(again.parameters(), 0.05, momentum=0.9)
    going_on.load_state_dict(loaded["optimizer"])
    found, _ = run(second, again, going_on)
    assert second.plan == whole.plan
    for name, value in expected.state_dict().items():
        assert torch.equal(value, found.state_dict()[name]), name


def test_limits_are_those_of_the_original() -> None:
    model = Small()
    schedule = IterativePruning(model, SAMPLE, 0.45, steps=4, max_ratio=0.5, budget="channels", min_channels=3)
    network: nn.Module = model
    while not schedule.finished:
        network, _ = schedule.step(network)
        for group in fxprune.report(network).groups:
            assert group.after >= max(3, group.before - group.before // 2)
    with pytest.raises(BudgetError, match="max_ratio"):
        IterativePruning(model, SAMPLE, 0.55, budget="channels", max_ratio=0.5)


def test_ratios_can_be_given_for_single_groups() -> None:
    plan = fxprune.plan(Small(), SAMPLE, 0.4, max_ratio={"conv1": 0.25})
    assert len(plan.groups["conv1"]) >= 9
    with pytest.raises(BudgetError, match="'nothing' matches no parameter"):
        fxprune.plan(Small(), SAMPLE, 0.4, max_ratio={"nothing": 0.25})


def test_saved_and_recovered(tmp_path: Path) -> None:
    schedule, model, _ = started(recover="reconstruct", calibration=batches())
    original, network = copy.deepcopy(model), model
    while not schedule.finished:
        network, _ = schedule.step(network)
    fxprune.save(network, tmp_path / "net")
    loaded = fxprune.load(tmp_path / "net")
    assert fxprune.report(loaded).plan == schedule.plan
    assert [row.method for row in fxprune.report(loaded).recovery] == ["reconstruct"]
    x = images(8)[0]
    torch.testing.assert_close(loaded(x), network(x))
    better = fxprune.recover(network, original, "reconstruct", calibration=batches())

    def error(net: nn.Module) -> Tensor:
        return F.mse_loss(net(images(12)[0]), original(images(12)[0]))

    assert error(better) <= error(fxprune.apply(original, SAMPLE, schedule.plan))


def test_mistakes() -> None:
    schedule, model, _ = started()
    pruned, _ = schedule.step(model)
    with pytest.raises(PlanError, match="not the network that step 1 returned"):
        schedule.step(Small())
    with pytest.raises(OptionError, match="steps=3, not 2"):
        IterativePruning(model, SAMPLE, 0.6, steps=2).load_state_dict(schedule.state_dict())
    with pytest.raises(PlanError, match="another network"):
        IterativePruning(pruned, SAMPLE, 0.6, steps=3).load_state_dict(schedule.state_dict())
    with pytest.raises(BudgetError):
        IterativePruning(model, SAMPLE, 0.999)
    with pytest.raises(OptionError, match="couplings"):
        IterativePruning(model, SAMPLE, 0.5, couplings="drop")
    with pytest.raises(OptionError, match="latency"):
        IterativePruning(model, SAMPLE, 0.5, budget="latency")
    with pytest.raises(OptionError, match="model.module"):
        IterativePruning(nn.DataParallel(model), SAMPLE, 0.5)
    with pytest.raises(OptionError, match="model._orig_mod"):
        IterativePruning(torch.compile(model, backend="eager"), SAMPLE, 0.5)  # type: ignore[arg-type]
    run(schedule, pruned, torch.optim.SGD(pruned.parameters(), 0.1))
    with pytest.raises(OptionError, match="all 3 steps"):
        schedule.step(pruned)
    other = fxprune.plan(Small(), SAMPLE, 0.2)
    with pytest.raises(PlanError, match="second plan is not for what the first leaves"):
        composed(fxprune.analyze(Small(), SAMPLE), other, other, {})


def test_an_optimiser_of_another_network_is_refused() -> None:
    """Training would go on and change nothing."""
    schedule, model, _ = started()
    with pytest.raises(OptionError, match="no optimiser has a parameter of this Small"):
        schedule.step(model, torch.optim.SGD(copy.deepcopy(model).parameters(), 0.1))
    with pytest.raises(OptionError, match=r"must be a torch.optim.Optimizer, not str"):
        schedule.step(model, "sgd")  # type: ignore[type-var]
    assert schedule.done == 0


@pytest.mark.parametrize("make", SCHEDULES)
def test_states_that_are_none_are_refused(make: Callable[[], Any]) -> None:
    """States of other kinds, with entries missing, and with each entry of another type."""
    good = make().state_dict()
    counts = {"done", "epoch", "steps"}
    bad: list[Any] = [None, [], 5, "x", {}]
    bad += [{k: v for k, v in good.items() if k != name} for name in good]
    bad += [{**good, name: value} for name in counts & good.keys() for value in (-1, "x", None, 1.5, True)]
    bad += [{**good, name: value} for name in ("held", "kept") if name in good for value in (None, 5, "x")]
    bad += [
        {**good, name: value} for name in ("strength", "pull", "bound") if name in good for value in ("x", None, -1)
    ]
    others = [other().state_dict() for other in SCHEDULES if other is not make]
    bad += [state for state in others if not good.keys() <= state.keys()]
    for state in bad:
        schedule = make()
        with pytest.raises((OptionError, PlanError)):
            schedule.load_state_dict(state)
    for plan in (5, {}, "{", []) if "plan" in good else ():
        with pytest.raises(PlanError):
            make().load_state_dict({**good, "plan": plan})
    make().load_state_dict(good)
