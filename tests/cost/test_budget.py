"""``budget="latency"`` through the public face and the command line, with a table that is computed."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import fxprune
from fxprune.cli import app
from fxprune.errors import BudgetError
from fxprune.reporting.page import as_html
from tests.cost.tables import MacsTable, patch_table


class Stairs(MacsTable):
    """A convolution takes what it would take with its output channels rounded up to 16."""

    def seconds(self, key: str, prepare: Any) -> float:
        found = re.search(r"weight=float32\[(\d+)x", key)
        out = int(found[1]) if found else 1
        return super().seconds(key, prepare) * math.ceil(out / 16) * 16 / out


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 96, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(96, 4, 1)).eval()


SAMPLE = torch.randn(1, 3, 8, 8)


def test_it_is_met_and_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    patch_table(monkeypatch)
    pruned = fxprune.compile(network(), SAMPLE, 0.5, budget="latency", round_to=1)
    report = fxprune.report(pruned)
    # Here a second is a multiply-accumulate.
    assert (report.budget_before, report.budget_after) == pytest.approx((report.macs_before, report.macs_after))
    assert 0.5 <= report.achieved < 0.51
    assert report.latency is not None
    assert report.latency.predicted == (report.budget_before, report.budget_after)
    assert report.latency.measured is not None
    assert "predicted" in str(report)
    assert "measured" in str(report)
    assert "Latency: predicted" in as_html(report)
    fxprune.save(pruned, tmp_path / "saved")
    assert fxprune.report(fxprune.load(tmp_path / "saved")).latency == report.latency


def test_widths_are_those_that_kernels_round_up_to(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_table(monkeypatch, Stairs())
    plan = fxprune.plan(network(), SAMPLE, 0.5, budget="latency")
    assert all(len(kept) % 16 == 0 for kept in plan.groups.values())
    # Narrower than one such step is still possible.
    narrow = fxprune.plan(network(), SAMPLE, 0.9, budget="latency", scope="uniform")
    assert narrow.groups.keys() == plan.groups.keys()


def test_limits_and_exclude_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_table(monkeypatch, Stairs())
    plan = fxprune.plan(network(), SAMPLE, 0.3, budget="latency", round_to=32, exclude=["0"])
    assert {name: len(kept) for name, kept in plan.groups.items()} == {"0": 64, "3": 64}
    with pytest.raises(BudgetError, match="latency is out of reach"):
        fxprune.plan(network(), SAMPLE, 0.9, budget="latency", exclude=["0"], min_channels=64)


def test_the_same_table_gives_the_same_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_table(monkeypatch)
    first, second = (fxprune.plan(network(), SAMPLE, 0.4, budget="latency").to_json() for _ in range(2))
    assert first == second


def test_a_network_without_values_cannot_be_timed() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    with pytest.raises(BudgetError, match="meta"):
        fxprune.compile(model, torch.empty(2, 4, device="meta"), 0.3, budget="latency")


def test_the_callers_network_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_table(monkeypatch)
    model = network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fxprune.compile(model, SAMPLE.repeat(2, 1, 1, 1), 0.3, budget="latency")
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_command_line_takes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    patch_table(monkeypatch)
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\ndef build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 1))\n"
    )
    options = ["--ratio", "0.4", "--budget", "latency", "--input-size", "1,3,8,8", "--json"]
    result = CliRunner().invoke(app, ["compile", f"{tmp_path / 'net.py'}:build", *options])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["budget"] == "latency"
    assert found["latency"]["predicted"][1] <= 0.6 * found["latency"]["predicted"][0]
