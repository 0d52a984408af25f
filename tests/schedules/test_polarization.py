"""Polarisation against autograd's gradient of the penalty, and worked numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxprune.errors import OptionError
from fxprune.schedules import Polarization
from tests.criteria.calibrated import Small, images


def test_the_gradient_is_that_of_the_penalty() -> None:
    model, other = Small(), Small()
    x, y = images(6)
    schedule = Polarization(model, 0.01, pull=1.3)
    nn.functional.cross_entropy(model(x), y).backward()
    schedule.step()
    scales = torch.cat([norm.weight for norm in (other.bn0, other.bn1, other.bn2)])
    penalty = (1.3 * scales.abs() - (scales - scales.mean()).abs()).sum()
    (nn.functional.cross_entropy(other(x), y) + 0.01 * penalty).backward()
    for value, expected in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(value.grad, expected.grad)


def test_worked_numbers() -> None:
    norm = nn.BatchNorm1d(4)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.1, 0.2, 0.3, 1.4]))
    norm.weight.grad = torch.zeros(4)
    schedule = Polarization(norm, 1.0, pull=1.2, bound=0.25)
    schedule.step()
    # Mean 0.5: signs -1, -1, -1, 1, their mean -0.5. So 1.2 + 1 - 0.5 below it, and 1.2 - 1 - 0.5 above.
    torch.testing.assert_close(norm.weight.grad, torch.tensor([1.7, 1.7, 1.7, -0.3]))
    schedule.clamp()
    torch.testing.assert_close(norm.weight.detach(), torch.tensor([0.1, 0.2, 0.25, 0.25]))


def test_state_and_mistakes() -> None:
    schedule = Polarization(Small(), 0.5, 2.0, 3.0)
    schedule.step()
    again = Polarization(Small())
    again.load_state_dict(schedule.state_dict())
    assert (again.strength, again.pull, again.bound, again.steps) == (0.5, 2.0, 3.0, 1)
    with pytest.raises(OptionError, match="no batch norm"):
        Polarization(nn.Linear(2, 2))
    with pytest.raises(OptionError, match="pull must be at least 0"):
        Polarization(Small(), pull=-1)
