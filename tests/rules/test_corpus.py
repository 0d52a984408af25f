"""Each case: nothing refused, what should shrink shrinks, and the result is the narrower network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fxprune.analysis import ChannelGraph
from fxprune.compiling import analyze
from fxprune.planning import Plan
from fxprune.rewriting import rewrite
from tests.rules.cases import Case
from tests.rules.corpus import CASES
from tests.rules.oracles import TOLERANCE, Kept, difference, masked, random_plan, state_of

SEEDS = (0, 1, 2)
BATCHES = (2, 5)


def by_name(case: Case) -> str:
    return case.name


def built(case: Case) -> nn.Module:
    """The network of a case in float64 and evaluation mode, with parameters that hide nothing."""
    torch.manual_seed(1)
    net = case.build().double().eval()
    with torch.no_grad():
        for name, tensor in (*net.named_parameters(), *net.named_buffers()):
            if name.endswith(("running_mean", "running_var")) or (tensor.dim() == 1 and tensor.is_floating_point()):
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    return net


def sampled(case: Case, batch: int, resized: bool = False) -> tuple[Any, ...]:
    """Arguments in float64."""
    torch.manual_seed(100 + batch)
    make = case.resized if resized else case.sample
    assert make is not None
    return tuple(a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in make(batch))


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
    net = built(case)
    before = state_of(net)
    samples = [sampled(case, b) for b in BATCHES] + ([sampled(case, 3, True)] if case.resized else [])
    graph = analyze(net, samples[0])
    visible = False
    for seed in SEEDS:
        plan = random_plan(graph, seed)
        check_widths(case, graph, plan)
        pruned, expected = rewrite(graph, net, plan.masks(graph)), oracle(case, net, plan)
        check_tensors(graph, net, pruned, plan)
        with torch.no_grad():
            for args in samples:
                assert difference(expected(*args), pruned(*args)) < TOLERANCE
            visible |= difference(net(*samples[0]), pruned(*samples[0])) > 100 * TOLERANCE
    assert visible, "the removed channels cannot be seen in the outputs"
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
