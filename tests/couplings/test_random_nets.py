"""Arbitrary networks with their couplings dropped: the masked original, at the ratio asked for."""

from __future__ import annotations

import torch
from hypothesis import given, note

import fxprune
from fxprune.errors import BudgetError, ModelError
from tests.nets.oracles import masked
from tests.nets.specification import Specification
from tests.nets.strategy import specifications
from tests.nets.values import in_double, relative_error
from tests.test_random_nets import SHARES, TOLERANCE, kept


def test_arbitrary_networks_equal_the_masked_original() -> None:
    dropped: list[bool] = []

    @given(specifications(), SHARES)
    def check(specification: Specification, share: float) -> None:
        model, sample = specification.build(), specification.sample(2)
        try:
            pruned = fxprune.compile(model, sample, 0.6 * share, couplings="drop", progress=False)
        except (BudgetError, ModelError) as error:  # what is out of reach; a failed proof is no such error
            note(str(error))
            return
        report = fxprune.report(pruned)
        assert report.achieved >= 0.6 * share - TOLERANCE
        dropped.append("index_select" in pruned.code)
        if not specification.masking_is_exact():
            return
        oracle, narrow = masked(model, kept(pruned)).double(), pruned.double()
        for batch in (2, 3):
            inputs = in_double(specification.sample(batch, seed=batch))
            assert relative_error(narrow(*inputs), oracle(*inputs)) < TOLERANCE

    check()
    torch.manual_seed(0)
    assert sum(dropped) >= len(dropped) // 5
