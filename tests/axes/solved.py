"""The solver's answer in terms of the variables that a test wrote down."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import count

import numpy as np

from fxprune.axes.elements import Mask, kept_mask
from fxprune.axes.expressions import Axis, Channels, Origin, variables
from fxprune.axes.solver import Cause, Solver
from tests.axes.brute_force import Unit, needs

CAUSE = Cause("node", "op", "file.py:1")
_names = count()


def channels(size: int) -> Channels:
    """A new variable."""
    return Channels(size, Origin(f"tensor{next(_names)}", 0))


def solve(*pairs: tuple[Axis, Axis], solver: Solver | None = None) -> Solver:
    """A solver that was told that the axes of each pair are the same."""
    solver = solver or Solver()
    for left, right in pairs:
        solver.unify(left, right, CAUSE)
    return solver


def roots(solver: Solver, axes: Sequence[Axis]) -> list[Channels]:
    """The free variables that axes are made of in the end, in order."""
    return list(dict.fromkeys(v for axis in axes for v in variables(solver.resolve(axis))))


def kept(solver: Solver, written: Sequence[Channels], masks: Mapping[Channels, Mask]) -> dict[Channels, list[bool]]:
    """Which units of the variables as written stay, given masks of the free ones."""
    return {v: kept_mask(solver.resolve(v), masks).tolist() for v in written}


def random_masks(free: Sequence[Channels], seed: int) -> dict[Channels, Mask]:
    """A random choice of units of the free variables."""
    generator = np.random.default_rng(seed)
    return {v: generator.random(v.size) < generator.random() for v in free}


def partition(solver: Solver, written: Sequence[Channels]) -> tuple[set[frozenset[Unit]], frozenset[Unit]]:
    """Units as written that need the same free unit, and those that need none."""
    together: dict[frozenset[Unit], set[Unit]] = defaultdict(set)
    for variable in written:
        for unit, free in enumerate(needs(solver.resolve(variable))):
            together[free].add((variable, unit))
    always = frozenset(together.pop(frozenset(), set()))
    return {frozenset(units) for units in together.values()}, always
