"""What can be removed from a network, by closure over its element-level coupling.

A *removal* is a set of cell classes that can be dead together while everything else lives: every product relation
still holds (a dead entry of a flattened dim has a dead factor, a dead factor kills its whole slab), nothing fixed is
dead, and no dim is left empty. A *unit* is a minimal removal: no smaller removal lies inside it. For a product, the
units are the rows and the columns (one head; the same position of every head), because a single entry forces one or
the other. A *group* is the set of units that look alike: they touch exactly the same dims of the same values and
parameters and the same pieces of a cut dim. A group of one unit cannot shrink; one of two or more is free.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from tests.nets.coupling import ALIVE, Conjunction, Coupling, Slot

Unit = frozenset[int]
Entry = tuple[str, int, int]
SEARCH_LIMIT = 5000


@dataclass(frozen=True)
class Group:
    """Units that are alike, in the order of their smallest cell, and the dims they touch."""

    slots: frozenset[Slot]
    units: tuple[Unit, ...]

    @property
    def free(self) -> bool:
        """Whether at least one unit can go while one stays."""
        return len(self.units) > 1


class Removal:
    """Solver of one network's removals; the network must be fully coupled before."""

    def __init__(self, net: Coupling) -> None:
        self.slots = net.slots()
        self.parameters = frozenset(net.parameters)
        self._pieces = frozenset(net.pieces)
        self._cells = {slot: frozenset(axis) for slot, axis in self.slots.items()}
        self._touching: dict[int, set[Slot]] = defaultdict(set)
        for slot, cells in self._cells.items():
            for cell in cells:
                self._touching[cell].add(slot)
        self._by_flat: dict[int, list[Conjunction]] = defaultdict(list)
        self._by_factor: dict[int, list[Conjunction]] = defaultdict(list)
        for conjunction in sorted(net.conjunctions()):
            self._by_flat[conjunction[0]].append(conjunction)
            for factor in conjunction[1]:
                self._by_factor[factor].append(conjunction)
        self._forbidden = self._never_removable()
        self.undecided = 0

    def groups(self) -> list[Group]:
        """Return the units sorted into groups."""
        alike: dict[frozenset[Slot], list[Unit]] = defaultdict(list)
        for unit in self.units():
            alike[self.slots_of(unit)].append(unit)
        return [Group(slots, tuple(sorted(units, key=min))) for slots, units in alike.items()]

    def units(self) -> list[Unit]:
        """Return every minimal removal, small ones first: a search that always extends the smallest open set.

        ``undecided`` counts the sets still open when the search gives up; what only they hold counts as fixed.
        """
        found: dict[int, list[Unit]] = defaultdict(list)
        seen: set[Unit] = set()
        order = count()
        pending = [(1, next(order), frozenset([seed])) for seed in self._seeds()]
        while pending and len(seen) < SEARCH_LIMIT:
            dead = self._forced(heappop(pending)[2])
            if dead is None or dead in seen or any(unit <= dead for cell in dead for unit in found.get(cell, ())):
                continue
            seen.add(dead)
            choices = self._unexplained(dead)
            if choices is None:
                found[min(dead)].append(dead)
            for factor in choices or ():
                heappush(pending, (len(dead) + 1, next(order), dead | {factor}))
        self.undecided = len(pending)
        return [unit for units in found.values() for unit in units]

    def _seeds(self) -> list[int]:
        return sorted(cell for cell in self._touching if cell not in self._forbidden)

    def slots_of(self, unit: Iterable[int]) -> frozenset[Slot]:
        """Return the dims that a set of cell classes touches."""
        return frozenset(slot for cell in unit for slot in self._touching[cell])

    def entries_of(self, unit: Unit) -> frozenset[Entry]:
        """Return the removed entries of parameters and buffers: ``(name, dim, index)``."""
        return frozenset(
            (name, dim, index)
            for name, dim in self.slots_of(unit)
            if name in self.parameters
            for index, cell in enumerate(self.slots[name, dim])
            if cell in unit
        )

    def leaves_something(self, dead: frozenset[int]) -> bool:
        """Whether every dim that loses an index keeps another; a mere piece of a dim may go as a whole."""
        touched = self.slots_of(dead)
        return not any(self._cells[slot] <= dead for slot in touched if slot[0] not in self._pieces)

    def _never_removable(self) -> frozenset[int]:
        """Return cells whose removal is forbidden on its own, or for which every explanation is."""
        forbidden, before = {ALIVE}, 0
        while before != len(forbidden):
            before = len(forbidden)
            self._forbidden = frozenset(forbidden)
            for cell in self._touching:
                dead = self._forced(frozenset([cell]))
                if dead is None or self._unexplained(dead) == []:
                    forbidden.add(cell)
        return frozenset(forbidden)

    def _forced(self, dead: frozenset[int]) -> frozenset[int] | None:
        """Return ``dead`` with everything it forces, or None where that is not allowed.

        A dead factor kills every entry it is part of; a dead entry with one factor that may go kills that factor.
        """
        closed, pending = set(dead), list(dead)
        while pending:
            cell = pending.pop()
            for forced in self._forced_by(cell):
                if forced not in closed:
                    closed.add(forced)
                    pending.append(forced)
        result = frozenset(closed)
        return None if closed & self._forbidden or not self.leaves_something(result) else result

    def _forced_by(self, cell: int) -> Iterable[int]:
        for flat, _ in self._by_factor[cell]:
            yield flat
        for _, factors in self._by_flat[cell]:
            open_factors = [factor for factor in factors if factor not in self._forbidden]
            if len(open_factors) == 1:
                yield open_factors[0]

    def _unexplained(self, dead: frozenset[int]) -> list[int] | None:
        """Return the factors one of which has to die for a dead entry that has none; the entry with fewest comes first.

        None where every dead entry has a dead factor.
        """
        choices = [
            [factor for factor in factors if factor not in self._forbidden]
            for cell in sorted(dead)
            for _, factors in self._by_flat[cell]
            if dead.isdisjoint(factors)
        ]
        return min(choices, key=len, default=None)
