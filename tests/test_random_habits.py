"""Arbitrary networks with habits of real code: the judge sees faults, and results do what their twins do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from torch import nn

import fxprune
from tests.nets.habits.drawing import HABITS, single_habit
from tests.nets.judging import WrongError, judge, run
from tests.nets.specification import Specification
from tests.nets.strategy import specifications

PLAIN = single_habit(HABITS["modes"]["norm_that_trains"], 4)


@given(specifications(habits=True))
def test_drawn_networks_run_in_both_modes(specification: Specification) -> None:
    model = specification.build()
    for network in (model, model.train()):
        output = run(network, specification.sample(3))
        assert not isinstance(output, Exception), repr(output)


def _momentum(pruned: Any) -> None:
    pruned.own8.momentum = 0.3


def _frozen(pruned: Any) -> None:
    next(pruned.parameters()).requires_grad_(False)


def _eval_only(pruned: Any) -> None:
    pruned.own8.eval()
    pruned.own8.train = lambda mode=True: pruned.own8


def _detached(pruned: Any) -> None:
    pruned.conv2.weight = nn.Parameter(pruned.conv2.weight.detach() * 1.001)


FAULTS = {"state after training": _momentum, "state made": _detached, "training, step 0": _eval_only}


@pytest.mark.parametrize("kind", FAULTS)
def test_the_judge_sees_a_fault(kind: str) -> None:
    def faulty(*arguments: Any, **options: Any) -> Any:
        pruned = fxprune.compile(*arguments, **options)
        FAULTS[kind](pruned)
        return pruned

    with pytest.raises(WrongError) as caught:
        judge(PLAIN, 0, faulty)
    assert caught.value.kind == kind


def test_the_judge_sees_a_flag() -> None:
    def faulty(*arguments: Any, **options: Any) -> Any:
        pruned = fxprune.compile(*arguments, **options)
        _frozen(pruned)
        return pruned

    with pytest.raises(WrongError, match="requires_grad"):
        judge(PLAIN, 0, faulty)


def test_the_judge_passes_a_right_result() -> None:
    verdict = judge(PLAIN, 0)
    assert verdict.compiled
    assert not verdict.refused
    assert verdict.checked > 10
