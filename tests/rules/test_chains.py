"""Any two or three ops one after another: refused in words or proven, and equal to the masked original."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, note
from hypothesis import strategies as st
from torch import nn

import fxprune
from fxprune.analysis.solving import ChannelGraph
from fxprune.errors import FxpruneError, ProofError
from tests.nets.tally import Tally
from tests.rules.cases import IMAGE, VECTOR, Case, Layout
from tests.rules.chains import LAYOUTS, chained, links
from tests.rules.neighbours import fitting, pairs
from tests.rules.oracles import TOLERANCE, difference, masked, random_plan
from tests.rules.prepared import sampled

LEAST_RATE = 0.95
# The proof refuses what it cannot evaluate without the removed entries; a difference that it finds is another matter.
NOT_EVALUATED = ("the proof cannot speak for it", "the original, over its kept entries: ")


@st.composite
def chains(draw: st.DrawFn) -> tuple[Layout, tuple[Case, ...], tuple[bool, ...]]:
    """A layout, two or three of its ops, and which of them stand on a branch."""
    layout = draw(st.sampled_from(LAYOUTS))
    count = draw(st.integers(2, 3))
    ops = draw(st.tuples(*[st.sampled_from(links(layout))] * count))
    return layout, ops, draw(st.tuples(*[st.booleans()] * count))


def check_chain(layout: Layout, cases: Sequence[Case], branches: Sequence[bool], seed: int, tally: Tally) -> str:
    """Prune at random, prove, and compare with zeros in the place of what is gone where zeros say it all.

    Returns what became of it: "compiled", "refused", or why there was nothing to do.
    """
    made = chained(layout, cases, branches)
    if made is None:
        return "no fit"
    net, sample = made
    try:
        graph: ChannelGraph = fxprune.analyze(net, sample)
        if not graph.groups:
            return "nothing to prune"
        plan = random_plan(graph, seed)
        pruned = fxprune.apply(net, sample, plan)
    except FxpruneError as error:
        if isinstance(error, ProofError) and not any(words in str(error) for words in NOT_EVALUATED):
            raise
        tally.add(0, reason=f"{[case.name for case in cases]}: {error}"[:200])
        return "refused"
    tally.add(1)
    if not graph.crosses_norm(group.variable for group in graph.groups):
        check_against_zeros(net, masked(net, plan), pruned, [sampled(cases[0], batch) for batch in (5, 4)])
    return "compiled"


def check_against_zeros(
    net: nn.Module, oracle: nn.Module, pruned: nn.Module, samples: Sequence[tuple[torch.Tensor, ...]]
) -> None:
    """Equal on the first of the samples that the network takes: some ops mix the batch with other sizes.

    Where a channel divides, zeros are no stand-in for what is gone, and the oracle is not finite.
    """
    for args in samples:
        try:
            with torch.no_grad():
                net(*args)
        except RuntimeError:
            continue
        with torch.no_grad():
            expected = oracle(*args)
            if expected.isfinite().all():
                assert difference(expected, pruned(*args)) < TOLERANCE
            return


def test_ops_in_any_order_are_proven() -> None:
    tally = Tally("chains compiled")

    @given(chains(), st.integers(0, 99))
    def check(chain: tuple[Layout, tuple[Case, ...], tuple[bool, ...]], seed: int) -> None:
        layout, ops, branches = chain
        note(f"{[case.name for case in ops]}, branches {branches}")
        check_chain(layout, ops, branches, seed, tally)

    check()
    print(f"\n{tally}")
    assert tally.rate >= LEAST_RATE


def test_an_operator_that_refuses_nan_is_proven_or_fails_with_a_reason() -> None:
    tally = Tally("chains compiled")
    ops = named(IMAGE, "pointwise/normal", "over channels/std", "norm/BatchNorm2d without statistics")
    check_chain(IMAGE, ops, (False, True, False), 42, tally)
    assert tally.done or tally.reasons


def named(layout: Layout, *names: str) -> list[Case]:
    by_name = {case.name: case for case in links(layout)}
    return [by_name[name] for name in names]


@pytest.mark.parametrize(
    ("layout", "names", "branches"),
    [
        pytest.param(VECTOR, ("bits/bitwise_xor", "buffer/divisor"), (False, True), id="zeros that divide"),
        pytest.param(
            VECTOR,
            ("pad/last dim", "reshape/three factors", "repeat/expand of a new dim"),
            (False, False, False),
            id="not of every batch",
        ),
    ],
)
def test_chains_that_long_runs_have_found(layout: Layout, names: tuple[str, ...], branches: tuple[bool, ...]) -> None:
    tally = Tally("chains compiled")
    assert check_chain(layout, named(layout, *names), branches, 0, tally) == "compiled"


@pytest.mark.deep
def test_every_rule_after_every_other() -> None:
    tally = Tally("pairs of rules compiled")
    for first, second in pairs():
        fit = fitting(first, second)
        if fit is not None:
            check_chain(*fit, (False, False), len(first) + len(second), tally)
    print(f"\n{tally}")
    assert tally.rate >= LEAST_RATE
