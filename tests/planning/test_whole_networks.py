"""What planning promises, on networks: what counts, what may not vanish, and steps that do not matter."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import BudgetError
from fxprune.schedules import IterativePruning


class Unseen(nn.Module):
    """Its forward hangs on values, so it is opaque."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(16, 64), nn.Linear(64, 64)])

    def forward(self, x: Tensor) -> Tensor:
        for value in x.unique().tolist():
            x = x + value
        for layer in self.layers:
            x = layer(x).relu()
        return x


class PartlySeen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unseen, self.inner, self.head = Unseen(), nn.Linear(64, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.unseen(x)).relu())


def test_opaque_parts_count_in_the_ratio_asked_and_achieved() -> None:
    opaque, seen = 16 * 64 + 64 * 64, 64 * 32 + 32 * 4
    model, sample = PartlySeen().eval(), torch.randn(3, 16)
    ratio = 0.2
    report = fxprune.report(fxprune.compile(model, sample, ratio))
    assert report.macs_before == 3 * (opaque + seen)
    kept = next(row.after for row in report.groups if row.name == "inner")
    assert report.macs_after == 3 * (opaque + kept * (64 + 4))
    assert report.achieved == pytest.approx(1 - report.macs_after / report.macs_before)
    assert report.achieved >= ratio
    with pytest.raises(BudgetError, match=r"Opaque parts, of which nothing can go: unseen \(70") as caught:
        fxprune.compile(model, sample, 0.5)
    assert caught.value.reachable is not None
    assert caught.value.reachable < seen / (opaque + seen)


class BatchNormScale:
    """Scores that training would have to move: the absolute scale of the norm, whatever else is there."""

    name = "scale"

    def score(self, group: Any, tensors: Any, graph: Any) -> np.ndarray:
        scales = [m for m in group.members if m.tensor.endswith("norm.weight")]
        return tensors[scales[0].tensor].abs().double().numpy()


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = [3, 16, 24, 32]
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"conv": nn.Conv2d(a, b, 3, padding=1), "norm": nn.BatchNorm2d(b)})
            for a, b in itertools.pairwise(widths)
        )
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block["norm"](block["conv"](x)).relu()
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("options", [{"round_to": 1}, {"round_to": "auto"}, {"budget": "params", "max_ratio": 0.6}])
def test_static_scores_make_the_number_of_steps_irrelevant(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, sample = Blocks().eval(), torch.randn(2, 3, 8, 8)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.1, 2)
    options = {"criterion": BatchNormScale(), **options}
    at_once = fxprune.plan(model, sample, 0.6, **options)
    for steps in (2, 7):
        schedule = IterativePruning(model, sample, 0.6, steps=steps, verify=False, **options)
        network: nn.Module = model
        while not schedule.finished:
            network, _ = schedule.step(network)
        assert schedule.plan.groups == at_once.groups
