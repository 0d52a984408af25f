"""Sparse training against the gradient of the penalty that it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxprune.errors import OptionError
from fxprune.schedules import SparseTraining
from tests.criteria.calibrated import Small, images


def test_the_gradient_is_that_of_the_penalty() -> None:
    model, other = Small(), Small()
    x, y = images(6)
    schedule = SparseTraining(model, 0.01)
    nn.functional.cross_entropy(model(x), y).backward()
    schedule.step()
    penalty = sum(norm.weight.abs().sum() for norm in (other.bn0, other.bn1, other.bn2))
    (nn.functional.cross_entropy(other(x), y) + 0.01 * penalty).backward()
    for value, expected in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(value.grad, expected.grad)
    again = SparseTraining(model, 1.0)
    again.load_state_dict(schedule.state_dict())
    assert (again.strength, again.steps) == (0.01, 1)


def test_a_network_without_scales_is_refused() -> None:
    with pytest.raises(OptionError, match="no batch norm"):
        SparseTraining(nn.Linear(2, 2))
    with pytest.raises(OptionError, match="at least 0"):
        SparseTraining(Small(), -1.0)
