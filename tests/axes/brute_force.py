"""What axis expressions mean, one element at a time, without any of the solver's code.

An element of an axis needs a set of units, ``(variable, unit)`` pairs: it stays as long as all of them stay. Two axes
that are the same keep the same elements.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from fxprune.axes.expressions import Axis, Channels, Concat, Fixed, Gather, Product

Unit = tuple[Channels, int]
Needs = list[frozenset[Unit]]
Kept = Mapping[Channels, Sequence[bool]]

ALWAYS = "always"


def needs(axis: Axis) -> Needs:
    """For each element the units that it needs, in the variables as they are written."""
    if isinstance(axis, Channels):
        return [frozenset([(axis, i)]) for i in range(axis.size)]
    if isinstance(axis, Fixed):
        return [frozenset()] * axis.size
    if isinstance(axis, Concat):
        return [element for part in axis.parts for element in needs(part)]
    if isinstance(axis, Gather):
        base = needs(axis.base)
        return [base[i] for i in axis.index.tolist()]
    assert isinstance(axis, Product)
    combinations = itertools.product(*map(needs, axis.factors))
    return [frozenset().union(*elements) for elements in combinations]


def stays(element: frozenset[Unit], kept: Kept) -> bool:
    """Whether all units of an element stay; a variable without a mask stays whole."""
    return all(kept[variable][unit] for variable, unit in element if variable in kept)


def mask_of(axis: Axis, kept: Kept) -> list[bool]:
    """Which elements of an axis stay."""
    return [stays(element, kept) for element in needs(axis)]


def holds(left: Axis, right: Axis, kept: Kept) -> bool:
    """Whether two axes keep the same elements."""
    return mask_of(left, kept) == mask_of(right, kept)


class Classes:
    """Naive union-find over units and ``ALWAYS``: what lives and dies together where no element fewer than 2 units."""

    def __init__(self) -> None:
        self._class: dict[object, set[object]] = {ALWAYS: {ALWAYS}}

    def add(self, variable: Channels) -> None:
        """Make the units of a variable known."""
        for unit in range(variable.size):
            self._class.setdefault((variable, unit), {(variable, unit)})

    def tie(self, left: Axis, right: Axis) -> None:
        """Tie two axes element by element."""
        for a, b in zip(needs(left), needs(right), strict=True):
            self._merge(_only(a), _only(b))

    def _merge(self, a: object, b: object) -> None:
        merged = self._class[a] | self._class[b]
        for member in merged:
            self._class[member] = merged

    def partition(self, variables: Iterable[Channels]) -> tuple[set[frozenset[Unit]], frozenset[Unit]]:
        """Classes of free units, and the units that always stay."""
        units = [(v, i) for v in variables for i in range(v.size)]
        always = frozenset(u for u in units if ALWAYS in self._class[u])
        free = {frozenset(m for m in self._class[u] if m in units) for u in units if u not in always}
        return free, always


def _only(element: frozenset[Unit]) -> object:
    assert len(element) <= 1, "an element that fewer than 2 units is no case for classes"
    return next(iter(element), ALWAYS)


def assignments(variables: Sequence[Channels]) -> Iterator[dict[Channels, list[bool]]]:
    """Every way to keep some units of some variables."""
    total = sum(v.size for v in variables)
    for bits in itertools.product((True, False), repeat=total):
        stream = iter(bits)
        yield {v: [next(stream) for _ in range(v.size)] for v in variables}
