"""Each case: nothing refused, what should shrink shrinks, and the result is the narrower network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from fxprune.analysis.solving import ChannelGraph
from fxprune.planning import Plan
from fxprune.rewriting import rewrite
from fxprune.rules import rule_names
from fxprune.rules.registry import module_forms
from tests.rules.cases import Case
from tests.rules.corpus import CASES
from tests.rules.declared import contradictions
from tests.rules.oracles import TOLERANCE, Kept, difference, masked, random_plan, state_of
from tests.rules.prepared import BATCHES, analysed, by_name, sampled

SEEDS = (0, 1)
# One needs a device that a test cannot count on; one has no kernel in double precision, and a test file of its own
# (test_experts.py), as have those that take sparse matrices (test_linear.py); one is no op of a network but is written
# by couplings="drop", and tested with it.
# The last two give as many positions as values say, which the corpus does not: tests/capture/test_selections.py does.
NOT_REACHED = {"cuda", "_grouped_mm", "_sparse_mm", "spmm", "select_channels", "nonzero", "argwhere"}


def oracle(case: Case, net: nn.Module, plan: Plan) -> Callable[..., Any]:
    """What computes the expected outputs."""
    narrow = case.narrow
    if narrow is None:
        return masked(net, plan)
    return lambda *args: narrow(net, Kept(plan), args)


def check_tensors(graph: ChannelGraph, net: nn.Module, pruned: nn.Module, plan: Plan) -> None:
    """Each tensor holds the kept entries of the one of its name, in storage of its own."""
    originals, kept = net.state_dict(), Kept(plan, graph.captured.first_name)
    storages = {t.untyped_storage().data_ptr() for t in originals.values()}
    for name, tensor in pruned.state_dict().items():
        assert torch.equal(tensor, kept.slice(name, originals[name])), name
        assert tensor.untyped_storage().data_ptr() not in storages or not tensor.numel(), name


def check_widths(case: Case, graph: ChannelGraph, plan: Plan) -> None:
    """Nothing refused; the stated dims shrink, the stated others do not."""
    assert graph.opaque == ()
    kept = Kept(plan, graph.captured.first_name)
    for place in case.free:
        name, _, dim = place.partition(":")
        assert kept.shrinks(name, int(dim or 0)), f"{place} does not shrink: {graph.pinned}"
    for place in case.pinned:
        name, _, dim = place.partition(":")
        assert not kept.shrinks(name, int(dim or 0)), f"{place} shrinks"
        reasons = [p.reason for p in graph.pinned if (p.tensor, p.dim) == (name, int(dim or 0))]
        assert reasons, f"nothing says why {place} stays"
        assert all(reasons)


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_random_prunes_equal_the_oracle(case: Case) -> None:
    """At two batch sizes and, where the network takes one, at another resolution."""
    net, graph = analysed(case)
    before = state_of(net)
    samples = [sampled(case, b) for b in BATCHES] + ([sampled(case, 3, True)] if case.resized else [])
    visible = False
    for seed in SEEDS:
        plan = random_plan(graph, seed)
        check_widths(case, graph, plan)
        pruned, expected = rewrite(graph, net, plan.masks(graph)), oracle(case, net, plan)
        check_tensors(graph, net, pruned, plan)
        assert contradictions(pruned) == []
        with torch.no_grad():
            for args in samples:
                assert difference(expected(*args), pruned(*args)) < TOLERANCE
            visible |= difference(net(*samples[0]), pruned(*samples[0])) > 100 * TOLERANCE
    assert visible, "the removed channels cannot be seen in the outputs"
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_every_rule_is_reached() -> None:
    reached = {call.name for case in CASES for call in analysed(case)[1].calls.values()}
    assert set(rule_names()) - reached == NOT_REACHED


def test_every_module_form_is_reached() -> None:
    reached = {cls.forward for case in CASES for cls in leaf_classes(*analysed(case))}
    assert [cls.__name__ for cls in module_forms() if cls.forward not in reached] == []


def leaf_classes(net: nn.Module, graph: ChannelGraph) -> Iterator[type[nn.Module]]:
    """The classes of the modules that stay one call."""
    for node in graph.calls:
        if node.op == "call_module":
            yield type(net.get_submodule(str(node.target)))


def test_there_are_enough_cases_and_each_has_its_own_name() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) > 100
