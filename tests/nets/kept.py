"""From kept indices of parameters to kept indices of every value of a specification."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from tests.nets.coupling import ALIVE, Axis, Conjunction, Coupling

Keep = Mapping[str, Sequence[Tensor | Sequence[int] | None]]


class InconsistentKeepError(ValueError):
    """Kept indices that no narrower version of the network can have."""


class KeptIndices:
    """Which indices of each named dim stay, given the set of dead cell classes."""

    def __init__(self, net: Coupling, dead: Iterable[int]) -> None:
        self._net = net
        self.dead = frozenset(dead)

    def positions(self, name: str, dim: int) -> tuple[int, ...]:
        """Return the kept indices of a dim, ascending."""
        axes = self._net.parameters.get(name) or self._net.pieces.get(name) or self._net.values[name]
        return tuple(at for at, cell in enumerate(axes[dim]) if self._net.root(cell) not in self.dead)

    def size(self, name: str, dim: int) -> int:
        """Return how many indices of a dim are kept."""
        return len(self.positions(name, dim))

    def keep(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Return the kept indices of each dim of each parameter and buffer."""
        axes = self._net.parameters.items()
        return {name: tuple(self.positions(name, dim) for dim in range(len(dims))) for name, dims in axes}


def kept_indices(net: Coupling, keep: Keep) -> KeptIndices:
    """Spread kept indices of parameters over the whole network.

    ``keep[name]`` has one entry for each dim: indices, or None for all of them. A name that is left out (the second
    name of a tied parameter) follows from what it is tied to.
    Raises InconsistentKeepError where tied entries disagree or a relation between flat and factored dims breaks.
    """
    state = _State(net, keep)
    state.solve()
    return KeptIndices(net, (cell for cell, alive in state.alive.items() if not alive))


class _State:
    """Cell classes known alive or dead so far."""

    def __init__(self, net: Coupling, keep: Keep) -> None:
        self.alive: dict[int, bool] = {ALIVE: True}
        self._conjunctions: list[Conjunction] = sorted(net.conjunctions())
        for name, axes in net.parameters.items():
            for dim, axis in enumerate(axes):
                if name in keep:
                    self._set_axis(net, axis, keep[name][dim], f"{name} dim {dim}")

    def _set_axis(self, net: Coupling, axis: Axis, chosen: Tensor | Sequence[int] | None, place: str) -> None:
        kept = _indices(chosen, len(axis))
        for at, cell in enumerate(axis):
            self._set(net.root(cell), at in kept, f"{place} index {at}")

    def _set(self, cell: int, alive: bool, place: str) -> None:
        known = self.alive.setdefault(cell, alive)
        if known != alive:
            raise InconsistentKeepError(f"{place} is {'kept' if alive else 'removed'}, what it is tied to is not")

    def solve(self) -> None:
        """Derive what follows; then let factors whose every entry is dead be dead, and the rest live."""
        self._derive()
        for factor in {factor for _, factors in self._conjunctions for factor in factors}:
            if factor not in self.alive:
                flats = [flat for flat, factors in self._conjunctions if factor in factors]
                self.alive[factor] = any(self.alive.get(flat, True) for flat in flats)
        self._derive()

    def _derive(self) -> None:
        before = -1
        while before != len(self.alive):
            before = len(self.alive)
            for flat, factors in self._conjunctions:
                self._derive_one(flat, factors)

    def _derive_one(self, flat: int, factors: tuple[int, ...]) -> None:
        place = "an entry of a flattened dim"
        known = [self.alive.get(factor) for factor in factors]
        if self.alive.get(flat):
            for factor in factors:
                self._set(factor, True, place)
        elif False in known:
            self._set(flat, False, place)
        elif all(known):
            self._set(flat, True, place)
        elif flat in self.alive and known.count(None) == 1:
            self._set(factors[known.index(None)], False, place)


def _indices(chosen: Tensor | Sequence[int] | None, size: int) -> set[int]:
    if chosen is None:
        return set(range(size))
    return {int(index) for index in (chosen.tolist() if isinstance(chosen, Tensor) else chosen)}


def kept_tensor(tensor: Tensor, keep: Sequence[Tensor | Sequence[int] | None]) -> Tensor:
    """Return ``tensor`` with only the kept indices of each dim."""
    for dim, chosen in enumerate(keep):
        if chosen is not None:
            tensor = tensor.index_select(dim, torch.as_tensor(chosen, dtype=torch.long))
    return tensor
