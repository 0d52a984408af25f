"""The cases of unification one by one, each against the brute-force meaning of axes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from fxprune.axes.expressions import Axis, Channels, Fixed, Gather, Origin, Product, concat, gather, product, variables
from fxprune.axes.solver import Cause, Solver
from fxprune.errors import AnalysisError
from tests.axes.brute_force import holds
from tests.axes.solved import CAUSE, channels, kept, random_masks, roots, solve


def written(*axes: Axis) -> list[Channels]:
    return list(dict.fromkeys(v for axis in axes for v in variables(axis)))


def check(*pairs: tuple[Axis, Axis], free: list[int]) -> Solver:
    """Solve; every choice of the free units keeps all pairs equal, and the free variables have the sizes ``free``."""
    names = written(*(axis for pair in pairs for axis in pair))
    solver = solve(*pairs)
    found = roots(solver, names)
    for seed in range(20):
        masks = random_masks(found, seed)
        kept_units = kept(solver, names, masks)
        assert all(holds(left, right, kept_units) for left, right in pairs)
    assert sorted(v.size for v in found) == sorted(free)
    return solver


# -- variables and fixed sizes ----------------------------------------------------------------------------------------


def test_two_variables_become_one() -> None:
    a, b, c = channels(4), channels(4), channels(4)
    check((a, b), (b, c), free=[4])


def test_a_variable_is_bound_to_what_it_is_unified_with() -> None:
    a, b, c = channels(6), channels(2), channels(3)
    solver = check((a, product([b, c])), free=[2, 3])
    resolved = solver.resolve(a)
    assert isinstance(resolved, Product)
    assert resolved.factors == (b, c)


def test_a_fixed_size_pins_with_its_reason() -> None:
    a, b = channels(4), channels(4)
    solver = check((a, b), (b, Fixed(4, "it is the input")), free=[])
    assert solver.resolve(a) == Fixed(4, "it is the input")


def test_a_fixed_size_pins_everything_an_expression_is_made_of() -> None:
    a, b, c = channels(2), channels(3), channels(2)
    check((concat([product([a, b]), c]), Fixed(8)), free=[])


def test_a_fixed_part_pins_the_part_of_a_variable() -> None:
    a, b = channels(5), channels(3)
    check((a, concat([b, Fixed(2, "padding")])), free=[3])


def test_different_sizes_are_an_error_that_names_the_op() -> None:
    with pytest.raises(AnalysisError, match=r"add \(net.py:3\): axes of 4 and 5 elements cannot be the same"):
        Solver().unify(channels(4), channels(5), Cause("n", "add", "net.py:3"))


def test_a_size_of_one_is_no_variable() -> None:
    assert Solver().fresh(1, Origin("x", 0)) == Fixed(1, "it has a single channel")
    assert Solver().fresh(0, Origin("x", 0)) == Fixed(0, "it has no channel")


def test_the_same_twice_changes_nothing() -> None:
    a, b, c = channels(6), channels(2), channels(3)
    pair: tuple[Axis, Axis] = (a, product([b, c]))
    check(pair, pair, free=[2, 3])


# -- products against products ----------------------------------------------------------------------------------------


def test_aligned_factors_are_unified_one_by_one() -> None:
    a, b, c, d = channels(2), channels(3), channels(2), channels(3)
    check((product([a, b]), product([c, d])), free=[2, 3])


def test_a_factor_is_split_at_the_boundary_of_another() -> None:
    a, b, c, d = channels(4), channels(3), channels(2), channels(6)
    check((product([a, b]), product([c, d])), free=[2, 2, 3])


def test_three_factorings_of_one_axis() -> None:
    x = channels(24)
    ways = [product([channels(s) for s in sizes]) for sizes in ((2, 12), (6, 4), (12, 2), (2, 3, 2, 2))]
    check(*((x, way) for way in ways), free=[2, 3, 2, 2])


def test_space_behind_channels() -> None:
    c, d = channels(6), channels(2)
    check((product([c, Fixed(4, "space")]), product([d, channels(3), Fixed(4, "space")])), free=[2, 3])


def test_factors_that_do_not_divide_are_pinned_never_guessed() -> None:
    pair = (product([channels(2), channels(3)]), product([channels(3), channels(2)]))
    solver = check(pair, free=[])
    assert "cut across" in str(solver.pins[0].reason)


def test_crossing_factors_pin_only_themselves() -> None:
    a, b = channels(5), channels(5)
    left = product([a, channels(2), channels(3)])
    right = product([b, channels(3), channels(2)])
    check((left, right), free=[5])


def test_crossing_factors_of_which_one_side_is_fixed() -> None:
    a, b = channels(6), channels(4)
    check((product([a, Fixed(2)]), product([b, Fixed(3)])), free=[2])


# -- concatenations ---------------------------------------------------------------------------------------------------


def test_aligned_parts_are_unified_one_by_one() -> None:
    check((concat([channels(2), channels(3)]), concat([channels(2), channels(3)])), free=[2, 3])


def test_parts_are_cut_at_every_boundary() -> None:
    check((concat([channels(2), channels(5)]), concat([channels(4), channels(3)])), free=[2, 2, 3])


def test_a_split_of_a_split() -> None:
    x = channels(12)
    check(
        (x, concat([channels(8), channels(4)])),
        (x, concat([channels(5), channels(7)])),
        (x, concat([channels(2), channels(10)])),
        free=[2, 3, 3, 4],
    )


def test_cutting_a_part_that_is_used_twice_cuts_it_everywhere() -> None:
    a = channels(4)
    check((concat([a, a]), concat([channels(2), channels(6)])), free=[2, 2])


def test_equal_parts_of_one_variable() -> None:
    a = channels(3)
    check((channels(6), concat([a, a])), free=[3])


# -- products against concatenations ----------------------------------------------------------------------------------


def test_packed_queries_keys_and_values() -> None:
    heads, width = channels(4), channels(5)
    packed = concat([channels(20), channels(20), channels(20)])
    check((product([Fixed(3), heads, width]), packed), free=[4, 5])


def test_heads_of_each_part_by_themselves() -> None:
    packed, head_width = channels(40), channels(4)
    queries, keys, values = channels(6), channels(2), channels(2)
    check(
        (packed, concat([product([h, head_width]) for h in (queries, keys, values)])),
        (packed, product([channels(10), head_width])),
        (packed, concat([channels(24), channels(8), channels(8)])),
        free=[6, 2, 2, 4],
    )


def test_a_gated_unit_reshaped_to_two_halves() -> None:
    half = channels(6)
    check((concat([channels(6), channels(6)]), product([Fixed(2), half])), free=[6])


def test_interleaved_halves() -> None:
    check((concat([channels(4), channels(4)]), product([channels(4), Fixed(2)])), free=[2, 2])


def test_parts_that_repeat_in_every_step_of_the_outer_factor() -> None:
    inner = channels(5)
    small, large = channels(2), channels(3)
    check((product([Fixed(2), inner]), concat([small, large, channels(2), channels(3)])), free=[2, 3])


def test_odd_pieces_of_a_product_are_cut_at_every_step_of_it() -> None:
    pair = (product([channels(3), channels(5)]), concat([channels(7), channels(8)]))
    check(pair, free=[2, 3])


def test_pieces_of_one_element_leave_the_inner_factor_whole() -> None:
    pair = (product([channels(3), channels(4)]), concat([channels(5), channels(7)]))
    check(pair, free=[4])


# -- gathers ----------------------------------------------------------------------------------------------------------


def test_a_gather_behind_rows_of_its_own_against_other_rows() -> None:
    turned = gather(channels(8), np.arange(8)[::-1].copy())
    check((product([Fixed(2), turned]), product([Fixed(4), channels(4)])), free=[4])


def test_a_flip_ties_mirrored_units() -> None:
    a = channels(6)
    solver = check((a, gather(a, np.arange(6)[::-1].copy())), free=[3])
    assert isinstance(solver.resolve(a), Gather)


def test_a_roll_ties_everything() -> None:
    a = channels(5)
    check((a, gather(a, np.roll(np.arange(5), 2))), free=[])


def test_a_strided_slice_with_padding() -> None:
    wide, narrow = channels(4), channels(2)
    check((wide, concat([Fixed(1, "padding"), narrow, Fixed(1, "padding")])), free=[2])
    wide = channels(8)
    check((channels(4), gather(wide, np.arange(0, 8, 2))), free=[8])


def test_two_orders_of_one_shuffle() -> None:
    index = np.arange(6).reshape(2, 3).T.reshape(-1).copy()
    x, y = channels(6), channels(6)
    check((x, gather(y, index)), (y, gather(x, index)), free=[len(np.unique(_orbit(index)))])


def _orbit(index: np.ndarray) -> np.ndarray:
    """The lowest element that each element reaches when the permutation is applied twice, again and again."""
    twice = index[index]
    label = np.arange(len(index))
    for _ in index:
        label = np.minimum(label, label[twice])
    return label


# -- occurs checks ----------------------------------------------------------------------------------------------------


def test_a_variable_unified_with_an_expression_that_contains_it() -> None:
    a = channels(4)
    check((a, gather(a, np.array([1, 0, 3, 2]))), free=[2])


def test_a_rotation_of_parts() -> None:
    a, b = channels(4), channels(2)
    check((concat([a, b]), concat([b, a])), free=[2])


# -- what rules ask for -----------------------------------------------------------------------------------------------


def test_pins() -> None:
    a, b = channels(3), channels(4)
    solver = Solver()
    solver.unify(channels(12), product([a, b]), CAUSE)
    solver.pin(a, "because", CAUSE)
    assert solver.resolve(a) == Fixed(3, "because")
    assert isinstance(solver.resolve(b), Channels)
    solver.pin(a, "again", CAUSE)
    assert solver.resolve(a) == Fixed(3, "because")
    assert [pin.reason for pin in solver.pins] == ["because", "again"]


def test_splits() -> None:
    solver = Solver()
    a, b = channels(4), channels(6)
    assert solver.split(a, [4], CAUSE) == [a]
    first, second = solver.split(a, [1, 3], CAUSE)
    assert (first, second.size) == (Fixed(1, "single channels of it are used apart"), 3)
    parts = solver.split(concat([a, b]), [2, 4, 4], CAUSE)
    assert [p.size for p in parts] == [2, 4, 4]
    assert solver.resolve(concat(parts)).size == 10


def test_splitting_a_product_between_its_steps() -> None:
    solver = Solver()
    heads, width = channels(6), channels(4)
    parts = solver.split(product([heads, width]), [8, 16], CAUSE)
    assert [p.size for p in parts] == [8, 16]
    assert all(isinstance(p, Product) and p.factors[1] is width for p in parts)
    assert sorted(v.size for v in roots(solver, [heads, width])) == [2, 4, 4]


def test_splitting_a_product_inside_its_steps_keeps_the_outer_factor() -> None:
    solver = Solver()
    outer, inner = channels(3), channels(4)
    parts = solver.split(product([outer, inner]), [5, 7], CAUSE)
    assert [p.size for p in parts] == [5, 7]
    assert isinstance(solver.resolve(outer), Fixed)
    for seed in range(10):
        masks = random_masks(roots(solver, [inner, *parts]), seed)
        units = kept(solver, [*written(*parts), outer, inner], masks)
        assert holds(product([outer, inner]), concat(parts), units)


def test_factors() -> None:
    solver = Solver()
    a = channels(12)
    outer, inner = solver.factor(a, [3, 4], CAUSE)
    assert (outer.size, inner.size) == (3, 4)
    assert isinstance(solver.resolve(a), Product)
    again = solver.factor(a, [6, 2], CAUSE)
    assert [f.size for f in again] == [6, 2]
    assert sorted(v.size for v in roots(solver, [a])) == [2, 2, 3]


def test_every_request_is_remembered_with_its_cause() -> None:
    solver = Solver()
    a, b = channels(4), channels(4)
    solver.unify(a, b, CAUSE)
    solver.unify(a, a, CAUSE)
    assert [(c.left, c.right, str(c.cause)) for c in solver.dependencies] == [(a, b, "op (file.py:1)")]


def test_resolved_axes_are_resolved() -> None:
    a, b, c, d = channels(12), channels(4), channels(3), channels(2)
    solver = solve((a, product([b, c])), (b, product([d, d])))
    resolved = solver.resolve(a)
    assert solver.resolve(resolved) is resolved
    assert not any(v.binding or v.parent for v in variables(resolved))


# -- size -------------------------------------------------------------------------------------------------------------


def test_a_long_chain_of_variables_needs_no_deep_recursion() -> None:
    names = [channels(8) for _ in range(5000)]
    solver = Solver()
    for left, right in zip(names[1:], names, strict=False):
        solver.unify(left, right, CAUSE)
    assert len({id(solver.resolve(v)) for v in names}) == 1


def test_a_long_chain_built_backwards() -> None:
    names = [channels(8) for _ in range(5000)]
    solver = Solver()
    for left, right in reversed(list(pairwise(names))):
        solver.unify(left, right, CAUSE)
    assert len({id(solver.resolve(v)) for v in names}) == 1


def test_a_long_chain_of_bindings() -> None:
    solver = Solver()
    outer = channels(2)
    for _ in range(2000):
        inner = channels(2)
        solver.unify(outer, gather(inner, np.array([1, 0])), CAUSE)
        outer = inner
    assert solver.resolve(outer).size == 2


def test_many_parts() -> None:
    parts = [channels(8) for _ in range(400)]
    total = channels(8 * 400)
    check((total, concat(parts)), (total, product([Fixed(400), channels(8)])), free=[8])


def test_wide_axes_are_not_taken_apart_channel_by_channel() -> None:
    size = 1_000_000
    a, b = channels(size), channels(size)
    solver = solve((a, b), (a, concat([channels(size // 4), channels(3 * size // 4)])))
    assert len(list(variables(solver.resolve(b)))) == 2
    flipped = gather(channels(size), np.arange(size)[::-1].copy())
    solver = solve((channels(size), flipped))
    assert solver.resolve(flipped).size == size
