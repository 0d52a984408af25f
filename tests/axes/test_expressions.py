"""Normal forms of axis expressions."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fxprune.axes.expressions import (
    ONE,
    Axis,
    Concat,
    Fixed,
    Gather,
    Product,
    concat,
    factors_of,
    gather,
    parts_of,
    product,
    variables,
)
from tests.axes.brute_force import needs
from tests.axes.expressions import expressions
from tests.axes.solved import channels


def test_a_product_opens_nested_products_and_drops_ones() -> None:
    a, b, c = channels(2), channels(3), channels(4)
    axis = product([a, ONE, product([b, c]), Fixed(1)])
    assert isinstance(axis, Product)
    assert axis.factors == (a, b, c)
    assert axis.size == 24
    assert product([ONE, a]) is a
    assert product([]) is ONE
    assert product([ONE, Fixed(1)]) is ONE


def test_neighbouring_fixed_factors_are_one() -> None:
    a = channels(2)
    axis = product([Fixed(3, "first"), Fixed(4), a, Fixed(5)])
    assert isinstance(axis, Product)
    assert axis.factors == (Fixed(12, "first"), a, Fixed(5))


def test_a_concatenation_opens_nested_ones_and_drops_empty_parts() -> None:
    a, b = channels(2), channels(3)
    axis = concat([a, Fixed(0), concat([b, Fixed(1)]), Fixed(2)])
    assert isinstance(axis, Concat)
    assert axis.parts == (a, b, Fixed(3))
    assert axis.size == 8
    assert concat([a]) is a
    assert concat([]) == Fixed(0)


def test_gathers_are_merged_and_the_identity_is_no_gather() -> None:
    a = channels(4)
    assert gather(a, np.arange(4)) is a
    assert gather(Fixed(4, "space"), np.array([1, 1])) == Fixed(2, "space")
    twice = gather(gather(a, np.array([3, 2, 1])), np.array([0, 2]))
    assert isinstance(twice, Gather)
    assert twice.base is a
    assert twice.index.tolist() == [3, 1]
    assert twice.size == 2


def test_factors_and_parts() -> None:
    a, b = channels(2), channels(3)
    assert factors_of(product([a, b])) == (a, b)
    assert factors_of(a) == (a,)
    assert factors_of(ONE) == ()
    assert parts_of(concat([a, b])) == (a, b)
    assert parts_of(a) == (a,)


def test_variables_come_in_order_with_repeats() -> None:
    a, b, c = channels(2), channels(3), channels(2)
    axis = concat([product([a, b]), gather(c, np.array([1, 0])), Fixed(2), a])
    assert list(variables(axis)) == [a, b, c, a]


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), expressions(n))))
def test_sizes_are_numbers_of_elements(case: tuple[int, Axis]) -> None:
    size, axis = case
    assert axis.size == size == len(needs(axis))
