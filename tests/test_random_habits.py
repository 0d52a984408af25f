"""Arbitrary networks with habits of real code: the judge sees faults, and results do what their twins do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxprune
from tests.nets.habits.drawing import HABITS, single_habit, singles
from tests.nets.judging import WrongError, judge, run
from tests.nets.reducing import RecordingChooser, ReplayingChooser, reduced
from tests.nets.specification import Specification
from tests.nets.strategy import specifications

# Each example is compiled and run some twenty times.
MOST_EXAMPLES = 2 * settings().max_examples // 3
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
def test_the_judge_notices_a_fault(kind: str) -> None:
    def faulty(*arguments: Any, **options: Any) -> Any:
        pruned = fxprune.compile(*arguments, **options)
        FAULTS[kind](pruned)
        return pruned

    with pytest.raises(WrongError) as caught:
        judge(PLAIN, 0, faulty)
    assert caught.value.kind == kind


def test_the_judge_notices_a_flag() -> None:
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
    assert {"eval at batch 17", "training, step 2", "gradients", "in torch.bfloat16"} <= verdict.compared.keys()


def test_failing_choices_become_few() -> None:
    chooser = RecordingChooser(3)
    drawn = [chooser.integer(2, 9) for _ in range(30)]

    def fails(choices: Sequence[int]) -> bool:
        replayed = ReplayingChooser(choices)
        return any(replayed.integer(2, 9) == max(drawn) for _ in range(len(choices)))

    assert fails(chooser.choices)
    assert len(reduced(chooser.choices, fails)) <= 4


@given(specifications(habits=True), st.integers(0, 999))
@settings(max_examples=MOST_EXAMPLES)
def test_arbitrary_networks_with_habits_do_what_their_twins_do(specification: Specification, seed: int) -> None:
    judge(specification, seed)


@pytest.mark.parametrize("name", list(singles())[::29])
def test_habits_alone_do_what_their_twins_do(name: str) -> None:
    judge(singles()[name](), seed=len(name))


@pytest.mark.deep
@pytest.mark.parametrize("name", singles())
def test_every_habit_alone_does_what_its_twin_does(name: str) -> None:
    for seed in range(10):
        judge(singles()[name](), seed)
