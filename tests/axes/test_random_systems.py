"""Arbitrary systems of axes: never looser than the elements allow, and exact where elements need one unit each."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fxprune.axes.expressions import Axis, Channels, Fixed, Origin, concat, product, variables
from fxprune.axes.solver import Solver
from tests.axes.brute_force import Classes, Unit, assignments, holds, needs
from tests.axes.expressions import Draw, compositions, expressions, factorisations, linear
from tests.axes.solved import CAUSE, channels, kept, partition, random_masks, roots, solve

Pairs = list[tuple[Axis, Axis]]


class NoSingles(Solver):
    """Lets a piece of one unit go, where the solver keeps it so that no piece becomes empty."""

    def fresh(self, size: int, origin: Origin) -> Axis:
        return Channels(size, origin)


def written(pairs: Pairs) -> list[Channels]:
    return list(dict.fromkeys(v for pair in pairs for axis in pair for v in variables(axis)))


@st.composite
def systems(draw: Draw, *, of_units: bool) -> Pairs:
    """A few pairs of axes that share variables."""
    pool = [channels(draw(st.integers(2, 6))) for _ in range(draw(st.integers(1, 3)))]
    kind = linear if of_units else expressions
    pairs: Pairs = []
    for _ in range(draw(st.integers(1, 3))):
        size = draw(st.integers(2, 12))
        pairs.append((draw(kind(size, pool)), draw(kind(size, pool))))
        pool = list(dict.fromkeys([*pool, *written(pairs)]))
    return pairs


def sound(solver: Solver, pairs: Pairs) -> None:
    names = written(pairs)
    free = roots(solver, names)
    for seed in range(8):
        units = kept(solver, names, random_masks(free, seed))
        assert all(holds(left, right, units) for left, right in pairs)


def without_last(
    free: set[frozenset[Unit]], always: frozenset[Unit], pairs: Pairs
) -> tuple[set[frozenset[Unit]], frozenset[Unit]]:
    """A class that all elements of some axis or variable need stays, because none of them may become empty."""
    axes: list[Axis] = [*written(pairs), *(axis for pair in pairs for axis in pair)]
    elements = [needs(axis) for axis in axes]
    emptying = {c for c in free if any(all(element & c for element in whole) for whole in elements)}
    return free - emptying, always.union(*emptying)


@given(systems(of_units=False))
def test_whatever_is_chosen_the_axes_stay_equal(pairs: Pairs) -> None:
    sound(solve(*pairs), pairs)


@given(systems(of_units=True))
def test_where_elements_need_one_channel_each_the_answer_is_exact(pairs: Pairs) -> None:
    names = written(pairs)
    classes = Classes()
    for variable in names:
        classes.add(variable)
    for left, right in pairs:
        classes.tie(left, right)
    solver = solve(*pairs, solver=NoSingles())
    sound(solver, pairs)
    assert without_last(*partition(solver, names), pairs) == without_last(*classes.partition(names), pairs)


@given(systems(of_units=False))
def test_backwards_and_swapped_the_axes_stay_equal_too(pairs: Pairs) -> None:
    solver = solve(*[(right, left) for left, right in reversed(pairs)])
    sound(solver, pairs)


@given(st.integers(2, 12).flatmap(lambda n: st.tuples(expressions(n), compositions(n))))
def test_a_split_keeps_what_was_there(case: tuple[Axis, list[int]]) -> None:
    axis, sizes = case
    names = list(dict.fromkeys(variables(axis)))
    solver = Solver()
    parts = solver.split(axis, sizes, CAUSE)
    assert [p.size for p in parts] == sizes
    everything = list(dict.fromkeys([*names, *(v for p in parts for v in variables(p))]))
    for seed in range(8):
        units = kept(solver, everything, random_masks(roots(solver, everything), seed))
        assert holds(axis, concat(parts), units)


@given(st.integers(2, 24).flatmap(lambda n: st.tuples(expressions(n), factorisations(n))))
def test_factoring_keeps_what_was_there(case: tuple[Axis, list[int]]) -> None:
    axis, sizes = case
    solver = Solver()
    factors = solver.factor(axis, sizes, CAUSE)
    assert [f.size for f in factors] == sizes
    sound(solver, [(axis, product(factors))])


# -- recovering a hidden structure ------------------------------------------------------------------------------------


@st.composite
def views_of_a_product(draw: Draw) -> tuple[list[int], list[list[int]]]:
    """Hidden factors, and ways to merge neighbouring ones that together show every boundary."""
    fine = draw(st.lists(st.sampled_from([2, 3, 4]), min_size=2, max_size=4))
    boundaries = list(range(1, len(fine)))
    views = []
    for _ in range(draw(st.integers(1, 3))):
        shown = draw(st.sets(st.sampled_from(boundaries)))
        views.append(_merged(fine, shown, math.prod))
    return fine, views


@st.composite
def views_of_a_concatenation(draw: Draw) -> tuple[list[int], list[list[int]]]:
    """Hidden parts, and ways to merge neighbouring ones."""
    fine = draw(st.lists(st.integers(1, 4), min_size=2, max_size=5))
    views = [
        _merged(fine, draw(st.sets(st.sampled_from(range(1, len(fine))))), sum) for _ in range(draw(st.integers(1, 3)))
    ]
    return fine, views


def _merged(fine: list[int], shown: set[int], total: Callable[[list[int]], int]) -> list[int]:
    ends = [0, *sorted(shown), len(fine)]
    return [total(fine[a:b]) for a, b in pairwise(ends)]


@given(views_of_a_product())
def test_factors_are_refined_to_all_boundaries_that_were_shown(case: tuple[list[int], list[list[int]]]) -> None:
    fine, views = case
    whole = channels(math.prod(fine))
    pairs: Pairs = [(whole, product([channels(s) for s in view])) for view in views]
    solver = solve(*pairs)
    sound(solver, pairs)
    strides = {math.prod(view[i:]) for view in views for i in range(len(view) + 1)}
    ordered = sorted(strides)
    expected = [high // low for low, high in pairwise(ordered)]
    assert sorted(v.size for v in roots(solver, [whole])) == sorted(expected)


@given(views_of_a_concatenation())
def test_parts_are_cut_at_all_boundaries_that_were_shown(case: tuple[list[int], list[list[int]]]) -> None:
    fine, views = case
    whole = channels(sum(fine)) if sum(fine) > 1 else Fixed(1)
    solver = Solver()
    pairs: Pairs = []
    for view in views:
        pairs.append((whole, concat([solver.fresh(s, Origin("part", 0)) for s in view])))
        solver.unify(*pairs[-1], CAUSE)
    sound(solver, pairs)
    ends = sorted({sum(view[:i]) for view in views for i in range(len(view) + 1)})
    expected = [high - low for low, high in pairwise(ends) if high - low > 1]
    assert sorted(v.size for v in roots(solver, [whole])) == sorted(expected)


@given(views_of_a_product(), views_of_a_product())
def test_parts_with_factors_of_their_own(
    first: tuple[list[int], list[list[int]]], second: tuple[list[int], list[list[int]]]
) -> None:
    """A concatenation of two products, each seen several ways: what is learnt of one part stays in it."""
    sizes = [math.prod(fine) for fine, _ in (first, second)]
    whole = channels(sum(sizes))
    pairs: Pairs = [(whole, concat([channels(s) for s in sizes]))]
    for view in first[1]:
        pairs.append((whole, concat([product([channels(s) for s in view]), channels(sizes[1])])))
    for view in second[1]:
        pairs.append((whole, concat([channels(sizes[0]), product([channels(s) for s in view])])))
    solver = solve(*pairs)
    sound(solver, pairs)
    expected: list[int] = []
    for _, views in (first, second):
        strides = sorted({math.prod(view[i:]) for view in views for i in range(len(view) + 1)})
        expected += [high // low for low, high in pairwise(strides)]
    assert sorted(v.size for v in roots(solver, [whole])) == sorted(expected)


# -- nothing that could go is lost in small aligned systems -----------------------------------------------------------


@st.composite
def aligned(draw: Draw) -> tuple[Axis, Axis]:
    """Two products of the same boundaries over variables of at most nine units in all."""
    sizes = draw(st.sampled_from([(2, 2), (2, 3), (3, 2), (2, 2, 2)]))
    left = product([channels(s) for s in sizes])
    right = product([channels(math.prod(sizes[:1])), channels(math.prod(sizes[1:]))])
    return left, right


@given(aligned())
def test_every_channel_that_can_be_removed_may_be_removed(pair: tuple[Axis, Axis]) -> None:
    names = written([pair])
    solver = solve(pair)
    removable = set()
    for choice in assignments(names):
        if all(any(mask) for mask in choice.values()) and holds(*pair, choice):
            removable |= {(v, i) for v, mask in choice.items() for i, stays in enumerate(mask) if not stays}
    _, always = partition(solver, names)
    assert removable.isdisjoint(always)
    assert all(needs(solver.resolve(v)) for v in names)
