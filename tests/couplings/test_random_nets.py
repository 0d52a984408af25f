"""Arbitrary networks with their couplings dropped: the masked original, at the ratio asked for."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st
from torch import nn

import fxprune
from fxprune.errors import BudgetError, ModelError
from tests.nets.kept import Keep
from tests.nets.oracles import masked
from tests.nets.specification import Specification
from tests.nets.strategy import specifications
from tests.nets.values import in_double, relative_error
from tests.test_random_nets import SHARES, TOLERANCE, kept


def assert_is_masked(specification: Specification, model: nn.Module, pruned: nn.Module, keep: Keep) -> None:
    """At two batch sizes, where zeros stand in for what is removed."""
    if specification.masking_is_exact():
        oracle, narrow = masked(model, keep).double(), pruned.double()
        for batch in (2, 3):
            inputs = in_double(specification.sample(batch, seed=batch))
            assert relative_error(narrow(*inputs), oracle(*inputs)) < TOLERANCE


def test_arbitrary_networks_equal_the_masked_original() -> None:
    @given(specifications(), SHARES)
    def check(specification: Specification, share: float) -> None:
        model, sample = specification.build(), specification.sample(2)
        try:
            pruned = fxprune.compile(model, sample, 0.6 * share, couplings="drop", progress=False, verify=False)
        except (BudgetError, ModelError) as error:
            note(f"out of reach: {error}")
            return
        assert fxprune.report(pruned).achieved >= 0.6 * share - TOLERANCE
        assert_is_masked(specification, model, pruned, kept(pruned))

    check()


def test_any_selection_is_proven() -> None:
    selected: list[int] = []

    @settings(max_examples=max(1, settings.default.max_examples // 2))
    @given(specifications(), st.integers(0, 2**16))
    def check(specification: Specification, seed: int) -> None:
        model, sample, draw = specification.build(), specification.sample(2), np.random.default_rng(seed)
        graph = fxprune.analyze(model, sample, couplings="drop")
        groups = [g for g in graph.groups if g.members[0].role == "selection"]
        selected.append(len(groups))
        if not groups:
            return
        masks = {group: draw.random(group.size) < 0.5 for group in groups}
        for mask in masks.values():
            mask[draw.integers(len(mask))] = True
        plan = fxprune.Plan.from_masks(graph, masks, {"couplings": "drop"})
        pruned = fxprune.apply(model, sample, plan)
        assert_is_masked(specification, model, pruned, plan.keep)

    check()
    torch.manual_seed(0)
    assert sum(map(bool, selected)) >= len(selected) // 4
