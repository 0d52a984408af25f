"""How narrow each group may become, and in which steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fxprune.axes.expressions import Axis, Channels, Concat, Product
from fxprune.errors import BudgetError
from fxprune.groups import Group
from fxprune.planning.budgets import PlannedGraph
from fxprune.planning.matching import excluded_groups, per_group

__all__ = ["MAX_RATIO", "Limits", "automatic_multiples", "limits_of"]

MAX_RATIO = 0.9
"""The share of a group's units that goes at most, unless asked: see ``benchmarks/floors.py``."""

_STEPS = 4  # an automatic multiple leaves a group at least that many widths
Share = float | Mapping[str, float] | Callable[[Group], float]
Count = int | Mapping[str, int] | Callable[[Group], int]


@dataclass(frozen=True)
class Limits:
    """Limits on the kept width of each group.

    Attributes:
        fewest: how many units stay at least; groups that are absent keep one.
        round_to: a narrowed group's kept width is a multiple of this.
        frozen: groups that keep their width.
        vectors: for groups whose kernels round widths up, the multiple to which; a narrowed group's width is one, or
            narrower than one.
        given: the limits in words, for messages.
    """

    fewest: Mapping[Group, int] = field(default_factory=dict)
    round_to: Mapping[Group, int] = field(default_factory=dict)
    frozen: frozenset[Group] = frozenset()
    vectors: Mapping[Group, int] = field(default_factory=dict)
    given: tuple[str, ...] = ()

    def steps(self, group: Group, protected: int = 0) -> NDArray[np.int64]:
        """How many units are gone after 0, 1, 2, ... steps: ascending from 0. ``protected`` units must stay."""
        if group in self.frozen:
            return np.zeros(1, dtype=np.int64)
        multiple, vector = self.round_to.get(group, 1), self.vectors.get(group, 1)
        lowest = -(-max(self.fewest.get(group, 1), protected) // multiple) * multiple
        kept = np.arange(lowest, group.size, multiple, dtype=np.int64)[::-1]
        kept = kept[(kept % vector == 0) | (kept < vector)]
        return np.concatenate([np.zeros(1, dtype=np.int64), group.size - kept])


def limits_of(
    graph: PlannedGraph,
    *,
    exclude: Sequence[str] = (),
    residual: str = "coupled",
    round_to: Count | str = 1,
    multiple: int = 1,
    min_channels: Count = 1,
    max_ratio: Share = 1.0,
    vectors: Mapping[Group, int] | None = None,
) -> Limits:
    """The limits that the options of :func:`fxprune.compile` set for the groups of a graph.

    ``multiple``: what "auto" rounds to, where a group is wide enough.

    Raises:
        BudgetError: a value makes no sense, or a pattern matches no group.
        ExcludeError: a pattern of ``exclude`` matches nothing.
    """
    if residual not in ("coupled", "inner"):
        raise BudgetError(f'residual must be "coupled" or "inner", not {residual!r}')
    multiples = _multiples(graph, round_to, multiple)
    least = {g: _count("min_channels", v) for g, v in per_group(graph, "min_channels", min_channels, 1).items()}
    shares = per_group(graph, "max_ratio", max_ratio, MAX_RATIO)
    fewest = {g: max(least[g], g.size - _most(shares[g], g)) for g in graph.groups}
    frozen = excluded_groups(graph, exclude) | {g for g in graph.groups if residual == "inner" and g.crosses_add}
    given = _in_words(graph, frozen, round_to, min_channels, max_ratio)
    return Limits(fewest, multiples, frozenset(frozen), vectors or {}, given)


def _multiples(graph: PlannedGraph, round_to: Count | str, multiple: int) -> dict[Group, int]:
    if round_to == "auto":
        return automatic_multiples(graph, multiple)
    if isinstance(round_to, str):
        raise BudgetError(f'round_to must be "auto", a whole number or a mapping, not {round_to!r}')
    return {g: _count("round_to", v) for g, v in per_group(graph, "round_to", round_to, 1).items()}


def automatic_multiples(graph: PlannedGraph, multiple: int) -> dict[Group, int]:
    """For each group the multiple that kernels like: ``multiple``, or a power of two below that leaves it four widths.

    A unit that stands for several channels side by side, as a head does, counts as that many.
    """
    found: dict[Group, int] = {}
    for group in graph.groups:
        wanted = multiple // math.gcd(multiple, _channels_per_unit(group))
        while wanted > 1 and wanted * _STEPS > group.size:
            wanted //= 2
        found[group] = wanted
    return found


def _channels_per_unit(group: Group) -> int:
    """How many neighbouring channels of the layers that make them one unit of the group stands for."""
    makers = [m.axis for m in group.members if m.role in ("out", "other")]
    return math.gcd(*(_inner(axis, group.variable) for axis in makers or [group.variable]))


def _inner(axis: Axis, variable: Channels) -> int:
    if isinstance(axis, Product) and variable in axis.factors:
        return math.prod(factor.size for factor in axis.factors[axis.factors.index(variable) + 1 :])
    if isinstance(axis, Concat):
        return math.gcd(*(_inner(part, variable) for part in axis.parts))
    return 1


def _count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BudgetError(f"{name} must be a whole number of at least 1, not {value!r}")
    return value


def _most(share: object, group: Group) -> int:
    """How many units that share is."""
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise BudgetError(f"max_ratio must be a number between 0 and 1, not {share!r}")
    # The small addend: 0.3 * 10 is 2.9999999999999996, and three of ten may go.
    return math.floor(share * group.size + 1e-9)


def _in_words(
    graph: PlannedGraph, frozen: frozenset[Group], round_to: Count | str, min_channels: Count, max_ratio: Share
) -> tuple[str, ...]:
    notes = [f"{len(frozen)} of {len(graph.groups)} groups kept whole by exclude or residual"] if frozen else []
    for name, value in (("round_to", round_to), ("min_channels", min_channels), ("max_ratio", max_ratio)):
        if callable(value) or isinstance(value, Mapping):
            notes.append(f"{name} of single groups")
        elif value == MAX_RATIO:
            notes.append(f"{name}={value:g}, unless another is given")
        elif value not in (1, "auto"):
            notes.append(f"{name}={value:g}")
    return tuple(notes)
