"""Two plans as one, and numbers at the edge of what can be saved."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxprune
from fxprune.cost.budgets import budget_model
from fxprune.errors import BudgetError, OptionError, PlanError
from fxprune.planning.composing import composed
from fxprune.planning.plan_text import parse_ranges, write_ranges
from fxprune.planning.selecting import _reachable

X = torch.randn(2, 4)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


def test_two_plans_are_one() -> None:
    net = network()
    first = fxprune.plan(net, X, 0.3)
    narrow = fxprune.apply(net, X, first)
    second = fxprune.plan(narrow, X, 0.3)
    both = composed(fxprune.analyze(net, X), first, second, {})
    at_once, in_turn = fxprune.apply(net, X, both), fxprune.apply(narrow, X, second)
    assert torch.equal(at_once(X), in_turn(X))


def test_plans_that_do_not_follow_one_another_are_refused() -> None:
    net = network()
    graph, first = fxprune.analyze(net, X), fxprune.plan(net, X, 0.3)
    with pytest.raises(PlanError, match="not for what the first leaves"):
        composed(graph, first, first, {})
    second = fxprune.plan(fxprune.apply(net, X, first), X, 0.3)
    half = dataclasses.replace(second, keep={**second.keep, "0.bias": (None,)})
    with pytest.raises(PlanError, match="no union of the original's channels"):
        composed(graph, first, half, {})


@given(st.floats(1e-6, 1e12), st.floats(0, 1))
def test_the_ratio_named_as_reachable_can_be_reached(full: float, share: float) -> None:
    saved = share * full
    assert _reachable(saved, full) * full <= saved
    assert _reachable(saved, full) == pytest.approx(share)


def test_no_indices_are_an_empty_text() -> None:
    assert write_ranges(torch.arange(0).numpy()) == ""
    text = write_ranges(torch.tensor([0, 2, 3]).numpy())
    assert parse_ranges(text, 5, "a tensor", most=9).tolist() == [0, 2, 3]


def test_latency_is_measured_first() -> None:
    with pytest.raises(BudgetError, match="has not been measured"):
        budget_model(fxprune.analyze(network(), X), "latency")


def test_budgets_and_layers_in_one_mapping_are_told_apart() -> None:
    with pytest.raises(OptionError, match=r"mixes budgets \(macs\) with layers \('0'\)"):
        fxprune.plan(network(), X, {"macs": 0.3, "0": 0.5})
