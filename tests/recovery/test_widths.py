"""Elimination against fits with the features left, and widths that follow from it."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import fxprune
from fxprune.calibration.least_squares import Elimination
from fxprune.criteria import Reconstruction
from tests.criteria.calibrated import Small, batches, images, scores
from tests.recovery.test_reconstruct import Lines


def test_elimination_costs_what_a_fit_with_the_rest_leaves() -> None:
    x = torch.randn(200, 8, dtype=torch.float64) @ torch.randn(8, 8, dtype=torch.float64)
    x = x - x.mean(0)
    weight = torch.randn(3, 8, dtype=torch.float64)
    blocks = torch.arange(8).reshape(4, 2)
    found = Elimination(x.T @ x, weight, blocks, ridge=0.0)
    total, left = 0.0, list(range(4))
    for unit in (2, 0, 3):
        expected = float(found.costs()[unit])
        added = found.remove([unit])
        assert np.isclose(added, expected)
        total += added
        left.remove(unit)
        rest = x[:, blocks[left].reshape(-1)]
        wanted = x @ weight.T
        residual = wanted - rest @ torch.linalg.lstsq(rest, wanted).solution
        assert np.isclose(total, float(residual.square().sum()), rtol=1e-6)
    together = Elimination(x.T @ x, weight, blocks, ridge=0.0).remove([2, 0, 3])
    assert np.isclose(together, total)


class Wide(nn.Module):
    """The first hidden layer has four channels too many, the second none."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = Lines()
        self.inner, self.last = nn.Linear(3, 8).double(), nn.Linear(8, 8).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.inner(self.lines(x))))


def test_widths_go_where_the_rest_can_make_up() -> None:
    model = Wide()
    x = torch.randn(256, 5, dtype=torch.float64)
    options = {"budget": "channels", "criterion": "random", "exclude": ["lines.second"]}
    plan = fxprune.plan(model, x[:2], 4 / 19, scope="reconstruction", calibration=[x], **options)
    kept = {name: len(units) for name, units in plan.groups.items()}
    assert kept["lines.first"] == 4
    assert kept["inner"] == 8
    assert plan.settings["scope"] == "reconstruction"


def test_the_criterion_finds_the_redundant_channels() -> None:
    torch.manual_seed(3)
    model = Lines()
    with torch.no_grad():
        model.first.weight[1], model.first.bias[1] = model.first.weight[0], model.first.bias[0]
    x = torch.randn(256, 5, dtype=torch.float64)
    pruned = fxprune.compile(
        model, x[:2], 0.5, budget="channels", criterion="reconstruction", calibration=[x], recover="reconstruct"
    )
    error = (pruned(x) - model(x)).square().mean() / model(x).var()
    assert error < 1e-6


def test_streams_convolutions_and_flattened_maps_are_judged() -> None:
    model = Small()
    found = scores(Reconstruction(), model)
    assert all(np.ptp(values) > 0 for values in found.values())
    x, _ = images(12)
    pruned = fxprune.compile(model, x[:2], 0.4, scope="reconstruction", calibration=batches(), recover="reconstruct")
    report = fxprune.report(pruned)
    assert report.achieved >= 0.4
    assert report.proof is not None
    assert report.recovery[0].left == {}
