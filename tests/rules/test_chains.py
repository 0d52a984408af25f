"""Any two or three ops one after another: refused in words or proven, and equal to the masked original."""

from __future__ import annotations

import torch
from hypothesis import given, note
from hypothesis import strategies as st

import fxprune
from fxprune.analysis import ChannelGraph
from fxprune.errors import FxpruneError, ProofError
from tests.nets.tally import Tally
from tests.rules.cases import IMAGE, Layout
from tests.rules.chains import LAYOUTS, chained, links
from tests.rules.oracles import TOLERANCE, difference, masked, random_plan
from tests.rules.prepared import sampled

LEAST_RATE = 0.95
# The proof refuses what it cannot evaluate without the removed entries; a difference that it finds is another matter.
NOT_EVALUATED = ("the proof cannot speak for it", "the original, over its kept entries: ")


@st.composite
def chains(draw: st.DrawFn) -> tuple[Layout, tuple[int, ...], tuple[bool, ...]]:
    """A layout, the numbers of two or three of its ops, and which of them stand on a branch."""
    layout = draw(st.sampled_from(LAYOUTS))
    count = draw(st.integers(2, 3))
    ops = draw(st.tuples(*[st.integers(0, len(links(layout)) - 1)] * count))
    return layout, ops, draw(st.tuples(*[st.booleans()] * count))


def check_chain(layout: Layout, ops: tuple[int, ...], branches: tuple[bool, ...], seed: int, tally: Tally) -> None:
    """Prune at random, prove, and compare with zeros in the place of what is gone where zeros say it all."""
    cases = [links(layout)[number] for number in ops]
    made = chained(layout, cases, branches)
    if made is None:
        return
    net, sample = made
    try:
        graph: ChannelGraph = fxprune.analyze(net, sample)
        if not graph.groups:
            return
        plan = random_plan(graph, seed)
        pruned = fxprune.apply(net, sample, plan)
    except FxpruneError as error:
        if isinstance(error, ProofError) and not any(words in str(error) for words in NOT_EVALUATED):
            raise
        tally.add(0, reason=f"{[case.name for case in cases]}: {error}"[:200])
        return
    tally.add(1)
    if not graph.crosses_norm(group.variable for group in graph.groups):
        args = sampled(cases[0], 5)
        with torch.no_grad():
            assert difference(masked(net, plan)(*args), pruned(*args)) < TOLERANCE


def test_ops_in_any_order_are_proven() -> None:
    tally = Tally("chains compiled")

    @given(chains(), st.integers(0, 99))
    def check(chain: tuple[Layout, tuple[int, ...], tuple[bool, ...]], seed: int) -> None:
        layout, ops, branches = chain
        note(f"{[links(layout)[number].name for number in ops]}, branches {branches}")
        check_chain(layout, ops, branches, seed, tally)

    check()
    print(f"\n{tally}")
    assert tally.rate >= LEAST_RATE


def test_an_operator_that_refuses_nan_ends_in_words() -> None:
    names = ("pointwise/normal", "over channels/std", "norm/BatchNorm2d without statistics")
    numbers = [[case.name for case in links(IMAGE)].index(name) for name in names]
    tally = Tally("chains compiled")
    check_chain(IMAGE, tuple(numbers), (False, True, False), 42, tally)
    assert tally.reasons
