"""Schedules in loops that keep the network and the optimiser: both are the same objects afterwards, smaller."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import OptionError
from fxprune.schedules import (
    FusedTraining,
    IterativePruning,
    Polarization,
    SoftPruning,
    SparseTraining,
    lightning_callback,
    pruning_metrics,
    step_in_place,
    trainer_callback,
)


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


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 32), nn.BatchNorm1d(32), nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.b(self.norm(self.a(x)).relu())
        return out


def in_place(network: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
    schedule = IterativePruning(network, torch.randn(4, 4), 0.5, steps=1, keep_class=True, verify=False)
    step_in_place(schedule, network, *optimizers)


def test_other_references_to_a_part_see_the_smaller_one() -> None:
    network = Normed()
    holder, optimizer = [network.a, network.norm], torch.optim.SGD(network.parameters(), lr=0.1)
    in_place(network, optimizer)
    assert holder == [network.a, network.norm]
    assert holder[0].weight is network.a.weight
    assert len(network.a.weight) == 16


def test_every_optimiser_continues_with_its_parameters() -> None:
    network = Normed()
    first = torch.optim.SGD(network.a.parameters(), lr=0.1, momentum=0.9)
    second = torch.optim.Adam([*network.norm.parameters(), *network.b.parameters()])
    network(torch.randn(8, 4)).square().mean().backward()
    first.step()
    second.step()
    in_place(network, first, second)
    assert [id(p) for p in first.param_groups[0]["params"]] == [id(p) for p in network.a.parameters()]
    assert second.state[network.norm.weight]["exp_avg"].shape == (16,)


@pytest.mark.parametrize("kind", [SparseTraining, Polarization])
def test_penalties_reach_the_remaining_scales(kind: Any) -> None:
    network = Normed()
    penalty = kind(network, 1.0)
    in_place(network, torch.optim.SGD(network.parameters(), lr=0.1))
    network.norm.weight.grad = torch.zeros(16)
    penalty.step()
    assert network.norm.weight.grad.abs().sum() > 0


def test_optimisers_that_train_nothing_are_refused() -> None:
    network, x = Normed(), torch.randn(4, 4)
    with pytest.raises(OptionError, match="not a copy"):
        in_place(network, torch.optim.SGD(copy.deepcopy(network).parameters(), lr=0.1))
    schedule: Any = IterativePruning(network, x, 0.5, keep_class=True)
    with pytest.raises(OptionError, match="every must be"):
        trainer_callback(schedule, network, every=0)
    with pytest.raises(OptionError, match="keep_class"):
        trainer_callback(IterativePruning(network, x, 0.5), network)
    schedule = FusedTraining(network, x, epochs=1, ratio=0.3)
    with pytest.raises(OptionError, match="FusedTraining returns a network of its own"):
        trainer_callback(schedule, network)


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
    callback = trainer_callback(schedule, network, log=lambda found: trainer.log(found))
    trainer = transformers.Trainer(network, arguments, train_dataset=rows, callbacks=[callback])
    try:
        trainer.train()
    finally:
        state.AcceleratorState._reset_state(reset_partial_state=True)  # it holds for the whole process
    logged = [entry for entry in trainer.state.log_history if "pruning/removed" in entry]
    assert [entry["pruning/step"] for entry in logged] == [1, 2, 2]
    assert logged[-1]["pruning/removed"] >= 0.5
    assert schedule.finished
    assert network.a.out_features == network.a.weight.shape[0] == 16


def test_metrics_count_silent_channels_and_small_scales() -> None:
    torch.manual_seed(0)
    network, x = Normed(), torch.randn(4, 4)
    soft, sparse = SoftPruning(network, x, 0.5), SparseTraining(network)
    assert pruning_metrics(soft) == {"pruning/step": 0, "pruning/silent": 0}
    soft.step()
    assert pruning_metrics(soft) == {"pruning/step": 1, "pruning/silent": 0.5}
    soft.wake()
    assert pruning_metrics(soft)["pruning/silent"] == 0
    network.norm.weight.data[:8] = 1e-4
    assert pruning_metrics(sparse) == {"pruning/step": 0, "pruning/small_scales": 0.25}


def test_the_logger_of_lightning_gets_the_metrics() -> None:
    pl = pytest.importorskip("lightning.pytorch")
    network, x = Normed(), torch.randn(8, 4)

    class Module(pl.LightningModule):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.net = network

        def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
            return network(batch).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(network.parameters(), lr=0.1)

    schedule = IterativePruning(network, x, 0.5, steps=1, keep_class=True, verify=False)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    callbacks = [lightning_callback(schedule, network)]
    trainer = pl.Trainer(max_epochs=1, callbacks=callbacks, enable_model_summary=False, **quiet)
    trainer.fit(Module(), torch.utils.data.DataLoader([x, x], batch_size=None))
    assert trainer.callback_metrics["pruning/removed"] >= 0.5
