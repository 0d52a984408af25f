"""Masks, units and sizes of axes against one-element-at-a-time definitions."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fxprune.axes.elements import (
    as_gather,
    channels_of,
    couple_elements,
    is_elementwise,
    kept_mask,
    kept_size,
    owned_by,
)
from fxprune.axes.expressions import Axis, Channels, Concat, Fixed, Gather, Product, concat, gather, product, variables
from tests.axes.brute_force import ALWAYS, Classes, mask_of, needs
from tests.axes.expressions import divisors, expressions, linear
from tests.axes.solved import channels, random_masks

sizes = st.integers(1, 12)
seeds = st.integers(0, 2**31)


def written(axis: Axis) -> list[Channels]:
    return list(dict.fromkeys(variables(axis)))


@given(sizes.flatmap(expressions), seeds)
def test_kept_mask(axis: Axis, seed: int) -> None:
    masks = random_masks(written(axis), seed)
    assert kept_mask(axis, masks).tolist() == mask_of(axis, {v: m.tolist() for v, m in masks.items()})


@given(sizes.flatmap(expressions))
def test_without_masks_everything_stays(axis: Axis) -> None:
    assert kept_mask(axis, {}).tolist() == [True] * axis.size
    assert kept_size(axis, {}) == axis.size


@given(sizes.flatmap(expressions))
def test_channels_of(axis: Axis) -> None:
    for variable in written(axis):
        found = channels_of(axis, variable).tolist()
        for element, unit in zip(needs(axis), found, strict=True):
            own = {i for v, i in element if v is variable}
            # A product of a variable with itself fewer than 2 of its units; that never survives the solver.
            assert (unit == -1 and not own) or unit in own


def has_no_gather(axis: Axis) -> bool:
    if isinstance(axis, Gather):
        return False
    inner = axis.factors if isinstance(axis, Product) else axis.parts if isinstance(axis, Concat) else ()
    return all(map(has_no_gather, inner))


@given(sizes.flatmap(expressions).filter(has_no_gather), seeds)
def test_kept_size_is_exact_without_gathers(axis: Axis, seed: int) -> None:
    masks = random_masks(written(axis), seed)
    widths = {v: float(m.sum()) for v, m in masks.items()}
    repeated = list(variables(axis))
    if len(repeated) == len(set(repeated)):
        assert round(kept_size(axis, widths), 6) == kept_mask(axis, masks).sum()


@given(sizes.flatmap(expressions))
def test_elementwise_means_one_channel_an_element(axis: Axis) -> None:
    if is_elementwise(axis):
        assert all(len(element) <= 1 for element in needs(axis))


@given(sizes.flatmap(linear))
def test_linear_axes_are_elementwise(axis: Axis) -> None:
    assert is_elementwise(axis)


@given(st.integers(2, 12).filter(divisors), st.data())
def test_a_product_with_one_shrinking_factor_is_a_gather(size: int, data: st.DataObject) -> None:
    inner = data.draw(st.sampled_from(divisors(size)))
    rest = size // inner
    outer = data.draw(st.sampled_from([*divisors(rest), rest, 1]))
    axis = product([Fixed(outer), channels(inner), Fixed(rest // outer)])
    if isinstance(axis, Product):
        spread = as_gather(axis)
        assert spread is not None
        assert needs(spread) == needs(axis)


def test_a_product_of_two_shrinking_factors_is_no_gather() -> None:
    axis = product([channels(2), channels(3)])
    assert isinstance(axis, Product)
    assert as_gather(axis) is None
    assert not is_elementwise(axis)


@given(sizes.flatmap(lambda n: st.tuples(linear(n), linear(n))))
def test_coupled_elements(pair: tuple[Axis, Axis]) -> None:
    left, right = pair
    labels = couple_elements(left, right)
    known = list(dict.fromkeys([*variables(left), *variables(right)]))
    classes = Classes()
    for variable in known:
        classes.add(variable)
    classes.tie(left, right)
    free, always = classes.partition(known)
    found: dict[int, set[tuple[Channels, int]]] = {}
    for variable, label in labels.of.items():
        for unit, number in enumerate(label.tolist()):
            found.setdefault(number, set()).add((variable, unit))
    assert frozenset(found.pop(labels.free, set())) == always
    assert {frozenset(units) for units in found.values()} == free
    assert sorted(found) == list(range(labels.free))


def test_labels_are_numbered_by_the_lowest_element() -> None:
    a, b = channels(3), channels(3)
    labels = couple_elements(a, b)
    assert labels.of[a].tolist() == labels.of[b].tolist() == [0, 1, 2]
    assert labels.free == 3
    assert ALWAYS not in labels.of


def test_a_long_chain_of_ties_is_followed_to_its_end() -> None:
    size = 257
    a = channels(size)
    shifted = Gather(a, np.roll(np.arange(size, dtype=np.int64), 1))
    labels = couple_elements(a, shifted)
    assert labels.free == 1
    assert set(itertools.chain(labels.of[a].tolist())) == {0}


@given(sizes.flatmap(expressions))
def test_owned_by(axis: Axis) -> None:
    for variable in written(axis):
        units, elements = owned_by(axis, variable)
        own = [(i, at) for at, element in enumerate(needs(axis)) for v, i in element if v is variable]
        assert list(zip(units.tolist(), elements.tolist(), strict=True)) == sorted(set(own))


def test_an_element_that_needs_two_channels_is_owned_by_both() -> None:
    a, b = channels(3), channels(2)
    square = product((a, a))
    for axis in (
        square,
        concat((b, square, Fixed(2))),
        product((b, square)),
        gather(concat((b, square)), np.arange(8)),
    ):
        for variable in (a, b):
            units, elements = owned_by(axis, variable)
            for unit in range(variable.size):
                mask = np.arange(variable.size) != unit
                gone = np.flatnonzero(~kept_mask(axis, {variable: mask}))
                assert elements[units == unit].tolist() == gone.tolist()
