"""Arbitrary networks through the public face: right, within budget, and not refused."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from hypothesis import currently_in_test_context, given, note
from hypothesis import strategies as st
from torch import fx, nn

import fxprune
from fxprune.errors import FxpruneError, ProofError
from tests.nets.gradients import Gradients, assert_equal, gradients, moved_by_rounding
from tests.nets.kept import Keep, kept_tensor
from tests.nets.oracles import (
    achieved_ratio,
    groups_that_lost,
    masked,
    maximum_ratio,
    narrow_twin,
    ratios_with_one_unit_back,
)
from tests.nets.snapshots import changes, snapshot
from tests.nets.specification import Specification
from tests.nets.strategy import specifications
from tests.nets.tally import Tally
from tests.nets.values import flat, in_double, relative_error

LEAST_RATE = 0.95
TOLERANCE = 1e-9
SMALL_UNIT = 0.005
NOTHING = 1e-12
SHARES = st.integers(1, 19).map(lambda twentieths: twentieths / 20)


def compiled(
    specification: Specification, model: nn.Module, ratio: float, tally: Tally, **options: str | bool
) -> fx.GraphModule | None:
    """Compile to any widths, or count why not. One that is made and then not proven is a failure, no refusal."""
    choices: dict[str, Any] = {"round_to": 1, "progress": False, **options}
    try:
        pruned = fxprune.compile(model, specification.sample(2), ratio, **choices)
    except ProofError:
        raise
    except FxpruneError as error:
        if currently_in_test_context():
            note(f"refused: {error}")
        tally.add(0, reason=f"{type(error).__name__}: {error}"[:150])
        return None
    tally.add(1)
    return pruned


def kept(pruned: fx.GraphModule) -> Keep:
    """Return the plan's kept indices."""
    plan = fxprune.report(pruned).plan
    assert plan is not None
    return plan.keep


def assert_equals_oracles(specification: Specification, model: nn.Module, pruned: fx.GraphModule) -> None:
    """Outputs at two batch sizes, and the gradients of kept parameters, are those of the narrow twin and masked one."""
    model, pruned, keep = model.double(), pruned.double(), kept(pruned)
    oracles = [narrow_twin(specification, model, keep)]
    oracles += [masked(model, keep)] if specification.masking_is_exact() else []
    for batch in (2, 3):
        sample = in_double(specification.sample(batch, seed=batch))
        for oracle in oracles:
            assert_same_outputs(pruned, oracle, sample)
    assert_same_gradients(pruned, oracles[0], sample, dict)
    for oracle in oracles[1:]:
        assert_same_gradients(pruned, oracle, sample, lambda g: {n: kept_tensor(t, keep[n]) for n, t in g.items()})


def assert_same_outputs(pruned: nn.Module, oracle: nn.Module, sample: tuple[torch.Tensor, ...]) -> None:
    """Equal but for a small relative error; where zero but for rounding, moved parameters say what is known."""
    expected = oracle(*sample)
    if relative_error(pruned(*sample), expected) < TOLERANCE:
        return
    moved = moved_by_rounding(oracle)(*sample)
    for ours, theirs, other in zip(*map(flat, (pruned(*sample), expected, moved)), strict=True):
        if relative_error(ours, theirs) >= TOLERANCE:
            assert theirs.abs().max() < NOTHING
            assert (ours - theirs).abs().max() <= 10 * (other - theirs).abs().max()


def assert_same_gradients(
    pruned: nn.Module, oracle: nn.Module, sample: tuple[torch.Tensor, ...], kept_of: Callable[[Gradients], Gradients]
) -> None:
    """The gradients of kept parameters are those of the oracle, ``kept_of`` which are the entries that are kept."""
    expected = kept_of(gradients(oracle, sample))
    assert_equal(gradients(pruned, sample), expected, lambda: kept_of(gradients(moved_by_rounding(oracle), sample)))


def assert_within_budget(specification: Specification, pruned: fx.GraphModule, ratio: float) -> None:
    """At least the ratio is gone, and without the last of what went, in the order of the scores, it would not be."""
    keep = kept(pruned)
    achieved = achieved_ratio(specification, keep)
    assert achieved >= ratio - TOLERANCE
    report = fxprune.report(pruned)
    assert abs(1 - report.macs_after / report.macs_before - achieved) < TOLERANCE
    if achieved > ratio + SMALL_UNIT:
        assert any(less < ratio + TOLERANCE for less in ratios_with_one_unit_back(specification, keep))


def assert_trains(specification: Specification, pruned: fx.GraphModule) -> None:
    """One optimiser step in training mode runs, reaches parameters and leaves everything finite."""
    pruned.train()
    optimiser = torch.optim.SGD(pruned.parameters(), lr=1e-3)
    gradients(pruned, specification.sample(4))
    optimiser.step()
    assert all(parameter.isfinite().all() for parameter in pruned.parameters())
    assert any(parameter.grad is not None for parameter in pruned.parameters())


def check_network(specification: Specification, share: float, tally: Tally, **options: str | bool) -> None:
    """Compile at a share of what can go, and check budget, training, oracles and that the model is left alone."""
    ratio = share * maximum_ratio(specification)
    if ratio == 0:
        return
    model = specification.build()
    before = snapshot(model)
    pruned = compiled(specification, model, ratio, tally, **options)
    assert not changes(before, snapshot(model))
    if pruned is not None:
        if not options:
            assert_within_budget(specification, pruned, ratio)
        assert_trains(specification, deepcopy(pruned))
        assert_equals_oracles(specification, model, pruned)


def test_arbitrary_networks_compile_and_equal_their_oracles() -> None:
    tally = Tally("networks compiled at a ratio within their brute-force maximum")

    @given(specifications(), SHARES)
    def check(specification: Specification, share: float) -> None:
        check_network(specification, share, tally)

    check()
    print(f"\n{tally}")
    assert tally.rate >= LEAST_RATE


def test_a_uniform_run_takes_something_from_every_free_group() -> None:
    refused, groups = Tally("networks compiled uniformly"), Tally("free groups that lost a channel")

    @given(specifications())
    def check(specification: Specification) -> None:
        maximum = maximum_ratio(specification)
        if maximum == 0:
            return
        pruned = compiled(specification, specification.build(), 0.9 * maximum, refused, scope="uniform", verify=False)
        if pruned is not None and not specification.unaligned:
            lost, free = groups_that_lost(specification, kept(pruned))
            note(f"{lost} of {free} groups lost a channel")
            groups.add(lost, free)

    check()
    print(f"\n{refused}\n{groups}")
    assert refused.rate >= LEAST_RATE
    assert groups.rate >= LEAST_RATE
