"""Arbitrary networks: several steps are one plan for the original, and a silent network is the compacted one."""

from __future__ import annotations

from hypothesis import given, note, settings
from torch import nn

import fxprune
from fxprune.errors import BudgetError, ModelError
from fxprune.schedules import IterativePruning, SoftPruning
from tests.nets.oracles import achieved_ratio, maximum_ratio, narrow_twin
from tests.nets.specification import Specification
from tests.nets.strategy import specifications
from tests.nets.values import in_double, relative_error
from tests.test_random_nets import SHARES, TOLERANCE

FEW = settings(max_examples=max(1, settings.default.max_examples // 4))


def test_three_steps_are_one_plan() -> None:
    @FEW
    @given(specifications(), SHARES)
    def check(specification: Specification, share: float) -> None:
        ratio = share * maximum_ratio(specification)
        model, sample = specification.build().double(), in_double(specification.sample(2))
        try:
            schedule = IterativePruning(model, sample, ratio, steps=3, verify=False)
        except (BudgetError, ModelError) as error:
            note(f"out of reach: {error}")
            return
        network: nn.Module = model
        while not schedule.finished:
            network, _ = schedule.step(network)
        assert achieved_ratio(specification, schedule.plan.keep) >= ratio - TOLERANCE
        twin = narrow_twin(specification, model, schedule.plan.keep)
        assert relative_error(network(*sample), twin(*sample)) < TOLERANCE

    check()


def test_a_silent_network_is_the_compacted_one() -> None:
    @FEW
    @given(specifications(), SHARES)
    def check(specification: Specification, share: float) -> None:
        model, sample = specification.build().double(), in_double(specification.sample(2))
        try:
            schedule = SoftPruning(model, sample, 0.6 * share)
            schedule.step()
        except (BudgetError, ModelError) as error:
            note(f"out of reach: {error}")
            return
        twin = narrow_twin(specification, model, schedule.plan.keep)
        silent = model(*sample)
        assert relative_error(silent, twin(*sample)) < TOLERANCE
        assert relative_error(schedule.compact(verify=False)(*sample), silent) < TOLERANCE
        schedule.wake()
        fxprune.plan(model, sample, 0.6 * share)

    check()
