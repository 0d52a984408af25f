"""Schedules in loops that keep the network and the optimiser: both are the same objects afterwards, smaller."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import OptionError
from fxprune.schedules import IterativePruning, step_in_place, trainer_callback


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 32), nn.Linear(32, 2)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.b(self.a(x).relu())
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_a_step_in_place_keeps_optimiser_and_scheduler_going() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    rates = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    schedule = IterativePruning(network, torch.randn(4, 6), 0.5, steps=2, keep_class=True, verify=False)
    for _ in range(2):
        network(torch.randn(4, 6)).square().mean().backward()
        optimizer.step()
        rates.step()
        step_in_place(schedule, network, optimizer)
    assert type(network) is nn.Sequential
    assert fxprune.report(network).achieved >= 0.5
    assert optimizer.param_groups[0]["lr"] == 0.025
    for parameter, held in zip(network.parameters(), optimizer.param_groups[0]["params"], strict=True):
        assert parameter is held
        assert optimizer.state[parameter]["momentum_buffer"].shape == parameter.shape
    with pytest.raises(OptionError, match="keep_class"):
        step_in_place(IterativePruning(network, torch.randn(4, 6), 0.1), network, optimizer)


def test_the_trainer_of_transformers_prunes_while_it_trains(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    state = pytest.importorskip("accelerate.state")
    torch.manual_seed(0)
    rows = [{"x": torch.randn(4), "labels": torch.tensor(i % 2)} for i in range(16)]
    network = Net()
    sample = {name: torch.stack([row[name] for row in rows]) for name in ("x", "labels")}
    schedule = IterativePruning(network, sample, 0.5, steps=2, keep_class=True, verify=False)
    how = {"num_train_epochs": 3, "report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
    arguments = transformers.TrainingArguments(str(tmp_path), **how)
    callback = trainer_callback(schedule, network)
    try:
        transformers.Trainer(network, arguments, train_dataset=rows, callbacks=[callback]).train()
    finally:
        state.AcceleratorState._reset_state(reset_partial_state=True)  # it holds for the whole process
    assert schedule.finished
    assert network.a.out_features == network.a.weight.shape[0] == 16
