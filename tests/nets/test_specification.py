"""The test machinery on its own: drawn networks run, and the oracles agree with one another."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.nets.kept import InconsistentKeepError, KeptIndices, kept_indices
from tests.nets.oracles import brute_force_groups, masked, maximum_ratio, narrow_twin
from tests.nets.removal import Removal
from tests.nets.specification import Input, Specification
from tests.nets.steps.convolution import Convolution
from tests.nets.steps.linear import Linear
from tests.nets.steps.pieces import Concat
from tests.nets.steps.pointwise import Binary
from tests.nets.steps.shapes import PURE_BATCH, Permute, Reshape, Segment
from tests.nets.strategy import random_specification, specifications
from tests.nets.values import flat, in_double, relative_error

TOLERANCE = 1e-9


def random_removal(specification: Specification, seed: int) -> KeptIndices:
    """Return what stays when some units of every group go."""
    removal, generator = Removal(specification.coupling), random.Random(seed)
    dead: frozenset[int] = frozenset()
    for group in removal.groups():
        units = list(group.units)
        generator.shuffle(units)
        for unit in units[: generator.randint(0, len(units) - 1)]:
            dead = dead | unit if removal.leaves_something(dead | unit) else dead
    return KeptIndices(specification.coupling, dead)


@given(specifications())
def test_drawn_networks_run_at_any_batch(specification: Specification) -> None:
    model = specification.build()
    for batch in (1, 3):
        for name, output in zip(specification.outputs, flat(model(*specification.sample(batch))), strict=True):
            assert torch.isfinite(output).all()
            assert output.shape == (batch, *specification.coupling.sizes(name)[1:])


@given(specifications())
def test_names_and_shapes_of_parameters_are_those_of_the_module(specification: Specification) -> None:
    shapes = {name: tuple(map(len, axes)) for name, axes in specification.coupling.parameters.items()}
    state = specification.module().state_dict()
    assert shapes == {name: tuple(tensor.shape) for name, tensor in state.items() if tensor.is_floating_point()} | {
        name: () for name in shapes if name not in state
    }


@given(specifications())
def test_the_twin_that_keeps_everything_is_the_original(specification: Specification) -> None:
    model = specification.build().double()
    sample = in_double(specification.sample(2))
    assert relative_error(narrow_twin(specification, model, {})(*sample), model(*sample)) < TOLERANCE


@given(specifications(), st.integers(0, 9))
def test_the_narrow_twin_runs_and_equals_the_masked_original(specification: Specification, seed: int) -> None:
    model = specification.build().double()
    kept = random_removal(specification, seed)
    sample = in_double(specification.sample(2))
    output = narrow_twin(specification, model, kept.keep())(*sample)
    expected = masked(model, kept.keep())(*sample) if specification.masking_is_exact() else output
    assert relative_error(output, expected) < TOLERANCE


@given(specifications(), st.integers(0, 9))
def test_kept_parameters_tell_what_every_value_keeps(specification: Specification, seed: int) -> None:
    kept = random_removal(specification, seed)
    again = kept_indices(specification.coupling, kept.keep())
    for name, axes in specification.coupling.values.items():
        for dim in range(len(axes)):
            assert again.positions(name, dim) == kept.positions(name, dim)


@given(specifications())
def test_a_kept_index_that_is_tied_to_a_removed_one_is_refused(specification: Specification) -> None:
    groups = [group for group in brute_force_groups(specification) if group.free]
    entry = next((entry for group in groups for unit in group.units for entry in unit if len(unit) > 1), None)
    if entry is None:
        return
    name, dim, index = entry
    keep = {
        other: [
            None if (other, at) != (name, dim) else sorted(set(range(len(axis))) - {index})
            for at, axis in enumerate(dims)
        ]
        for other, dims in specification.coupling.parameters.items()
    }
    with pytest.raises(InconsistentKeepError):
        kept_indices(specification.coupling, keep)


def test_most_drawn_networks_can_shrink_and_their_coupling_is_decided() -> None:
    drawn = [random_specification(seed) for seed in range(60)]
    ratios = [maximum_ratio(specification) for specification in drawn]
    undecided = 0
    for specification in drawn:
        removal = Removal(specification.coupling)
        removal.units()
        undecided += removal.undecided > 0
    assert sum(ratio > 0.3 for ratio in ratios) >= 0.9 * len(drawn)
    assert undecided <= 0.05 * len(drawn)


def image_net(*steps: object, output: str) -> Specification:
    """Return a network of one image of 2 channels and 4 x 4 positions."""
    return Specification((Input("x", (2, 4, 4)),), tuple(steps), (output,))  # type: ignore[arg-type]


def sizes_of_free_groups(specification: Specification) -> list[int]:
    return sorted(len(group.units) for group in brute_force_groups(specification) if group.free)


def test_a_chain_has_one_group_for_each_hidden_width() -> None:
    net = image_net(
        Convolution("a", "x", "first", 2, 5),
        Convolution("b", "a", "second", 5, 4),
        Convolution("c", "b", "third", 4, 3),
        output="c",
    )
    assert sizes_of_free_groups(net) == [4, 5]
    units = next(group.units for group in brute_force_groups(net) if len(group.units) == 4)
    assert frozenset({("second.weight", 0, 1), ("second.bias", 0, 1), ("third.weight", 1, 1)}) in units
    removed = 1 - (2 * 1 + 1 * 1 + 1 * 3) / (2 * 5 + 5 * 4 + 4 * 3)
    assert maximum_ratio(net) == pytest.approx(removed)


def test_an_addition_ties_and_a_concat_does_not() -> None:
    branches = (Convolution("a", "x", "left", 2, 4, bias=False), Convolution("b", "x", "right", 2, 4, bias=False))
    added = image_net(*branches, Binary("c", "a", "b"), Convolution("d", "c", "last", 4, 1), output="d")
    assert sizes_of_free_groups(added) == [4]
    joined = image_net(*branches, Concat("c", ("a", "b"), 1), Convolution("d", "c", "last", 8, 1), output="d")
    assert sizes_of_free_groups(joined) == [4, 4]


def test_a_grouped_convolution_loses_groups_or_slices_of_all_groups() -> None:
    net = image_net(
        Convolution("a", "x", "before", 2, 6, bias=False),
        Convolution("b", "a", "grouped", 6, 12, groups=3, bias=False),
        Convolution("c", "b", "after", 12, 1, bias=False),
        output="c",
    )
    assert sizes_of_free_groups(net) == [2, 3, 4]
    group = next(group for group in brute_force_groups(net) if len(group.units) == 3)
    first = {("before.weight", 0, 0), ("before.weight", 0, 1), *(("grouped.weight", 0, row) for row in range(4))}
    assert frozenset(first | {("after.weight", 1, row) for row in range(4)}) in group.units


def test_a_channel_shuffle_is_rows_and_columns() -> None:
    split = (PURE_BATCH, Segment(1, (2, 3)), Segment(1, (4,)), Segment(1, (4,)))
    merge = (PURE_BATCH, Segment(2, (6,)), Segment(1, (4,)), Segment(1, (4,)))
    net = image_net(
        Convolution("a", "x", "before", 2, 6, bias=False),
        Reshape("b", "a", split),
        Permute("c", "b", (0, 2, 1, 3, 4)),
        Reshape("d", "c", merge),
        Convolution("e", "d", "after", 6, 1, bias=False),
        output="e",
    )
    assert sizes_of_free_groups(net) == [2, 3]
    column = {("before.weight", 0, 1), ("before.weight", 0, 4), ("after.weight", 1, 2), ("after.weight", 1, 3)}
    assert any(frozenset(column) in group.units for group in brute_force_groups(net))


def test_every_position_of_a_flattened_channel_goes_with_it() -> None:
    flatten = Reshape("b", "a", (PURE_BATCH, Segment(3, (48,))))
    net = image_net(
        Convolution("a", "x", "conv", 2, 3, bias=False), flatten, Linear("c", "b", "head", 48, 5), output="c"
    )
    units = next(group.units for group in brute_force_groups(net) if group.free)
    assert frozenset({("conv.weight", 0, 1), *(("head.weight", 1, at) for at in range(16, 32))}) in units


def test_a_network_prints_as_source_that_defines_it() -> None:
    net = image_net(Convolution("a", "x", "conv", 2, 3, bias=False), output="a")
    assert "self.conv = nn.Conv2d(2, 3, 3, padding=1, bias=False)" in repr(net)
    assert "return a" in repr(net)
