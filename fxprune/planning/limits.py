"""Limits on widths, and the groups that a pattern of ``exclude``, ``ratio`` or a limit matches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TypeVar

import numpy as np

from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.expressions import Axis, Channels, Concat, IndexArray, Product
from fxprune.cost.budgets import budget_model
from fxprune.errors import BudgetError, ExcludeError, FxpruneError, check_choice, check_count, check_share
from fxprune.rules.call import parameter_name

Value = TypeVar("Value")


def excluded_groups(graph: ChannelGraph, patterns: Sequence[str]) -> frozenset[Group]:
    """The groups that contain output channels of the modules and parameters that the patterns match.

    A group's own name means that group. Any other pattern (``fnmatch`` syntax, case-sensitive, ``*`` crosses dots)
    matches module and parameter paths; a matched module covers everything below it. Output channels are the dims of
    role "out", those of bare parameters (role "other") and those of selections. A pattern that finds neither, because
    it names only norms, keeps the widths they normalise. Raises ExcludeError: a pattern matches no module with
    parameters or buffers, and no parameter.
    """
    if isinstance(patterns, str):
        raise ExcludeError(f"exclude takes a list of patterns; write exclude=[{patterns!r}]")
    return frozenset(group for pattern in patterns for group in _groups(graph, pattern, "exclude", ExcludeError))


def per_group(
    graph: ChannelGraph, option: str, value: Value | Mapping[str, Value] | Callable[[Group], Value], rest: Value
) -> dict[Group, Value]:
    """The value of an option for each group: one for all, a function of the group, or a mapping from patterns.

    Patterns are as in :func:`excluded_groups`; the first that matches decides, and ``rest`` applies if none does.
    Raises BudgetError: a pattern matches no group.
    """
    if callable(value):
        return {group: value(group) for group in graph.groups}
    if not isinstance(value, Mapping):
        return dict.fromkeys(graph.groups, value)
    found: dict[Group, Value] = {}
    for pattern, given in value.items():
        groups = _groups(graph, pattern, option, BudgetError)
        if not groups:
            raise BudgetError(f"{option} pattern {pattern!r} matches no width that may change{_why(graph, pattern)}")
        found = {**dict.fromkeys(groups, given), **found}
    return {group: found.get(group, rest) for group in graph.groups}


def _groups(graph: ChannelGraph, pattern: str, option: str, error: type[FxpruneError]) -> set[Group]:
    if not isinstance(pattern, str):
        raise error(f"{option} takes modules of the model, or patterns as strings, not {pattern!r:.80}")
    named = {group for group in graph.groups if group.name == pattern}
    if named:
        return named
    tensors = frozenset(first for name, first in graph.first_names.items() if _matches(name, pattern))
    if not tensors:
        raise error(
            f"{option} pattern {pattern!r} matches no parameter and no module that has any; patterns are matched "
            f"against paths such as {', '.join(repr(n) for n in list(graph.shapes)[:3])} and the modules above them"
        )
    outputs = set(_holding(graph, tensors, ("out", "other", "selection")))
    return outputs or set(_holding(graph, tensors, ("scale",)))


def _matches(tensor: str, pattern: str) -> bool:
    """Whether the pattern matches the tensor's path or that of a module that contains it."""
    parts = tensor.split(".")
    return any(fnmatchcase(".".join(parts[:length]), pattern) for length in range(len(parts), 0, -1))


def _holding(graph: ChannelGraph, tensors: frozenset[str], roles: Sequence[str]) -> Iterator[Group]:
    for group in graph.groups:
        if any(member.role in roles and member.tensor in tensors for member in group.members):
            yield group


def _why(graph: ChannelGraph, pattern: str) -> str:
    reasons = (f"{p.tensor} dim {p.dim}: {p.reason}" for p in graph.pinned if _matches(p.tensor, pattern))
    first = next(reasons, None)
    return f" ({first})" if first else ""


MAX_RATIO = 0.9
"""The share of a group's channels that goes at most; see ``--max-ratio`` of ``benchmarks/criteria_accuracy.py``."""

_WIDTHS = 8  # an automatic multiple leaves a group at least that many widths
# Where many layers, or layers that do little but move values, work on a group, the vectors of CPUs are taken if two fit
# and a step saves at most this share of the MACs.
_VECTOR, _MOST_SAVED = 16, 0.05
Share = float | Mapping[str, float] | Callable[[Group], float]
Count = int | Mapping[str, int] | Callable[[Group], int]


@dataclass(frozen=True)
class Limits:
    """Limits on the kept width of each group."""

    # The least number of channels that stay; absent groups keep at least one.
    fewest: Mapping[Group, int] = field(default_factory=dict)
    round_to: Mapping[Group, int] = field(default_factory=dict)  # a narrowed group's kept width is a multiple of this
    frozen: frozenset[Group] = frozenset()  # groups that keep their width
    # The multiple to which the kernels of a group round its width up; a narrowed group's width is a multiple of it, or
    # below it.
    vectors: Mapping[Group, int] = field(default_factory=dict)
    given: tuple[str, ...] = ()  # the limits in words, for messages

    def steps(self, group: Group, protected: int = 0) -> IndexArray:
        """The number of channels removed after 0, 1, 2, ... steps, ascending; ``protected``: how many must stay."""
        if group in self.frozen:
            return np.zeros(1, dtype=np.int64)
        multiple, vector = self.round_to.get(group, 1), self.vectors.get(group, 1)
        lowest = -(-max(self.fewest.get(group, 1), protected) // multiple) * multiple
        kept = np.arange(lowest, group.size, multiple, dtype=np.int64)[::-1]
        kept = kept[(kept % vector == 0) | (kept < vector)]
        return np.concatenate([np.zeros(1, dtype=np.int64), group.size - kept])


def spared_groups(
    graph: ChannelGraph, ratio: float | Mapping[str, float] | None, exclude: Sequence[str], residual: str
) -> frozenset[Group]:
    """The groups that lose no channels, whatever the scores are; see :func:`fxprune.planning.allocate`."""
    shares = per_group(graph, "ratio", ratio, 0.0) if isinstance(ratio, Mapping) else {}
    idle = {g for g in graph.groups if shares.get(g) == 0 or (residual == "inner" and g.crosses_add)}
    return excluded_groups(graph, exclude) | idle


def limits_of(
    graph: ChannelGraph,
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

    ``multiple``: the multiple that "auto" rounds to if a group is wide enough. Raises BudgetError: a value is invalid,
    or a pattern matches no group; ExcludeError: a pattern of ``exclude`` matches nothing.
    """
    check_choice(BudgetError, "residual", residual, ("coupled", "inner"))
    multiples = _multiples(graph, round_to, multiple)
    least = _counts(graph, "min_channels", min_channels)
    shares = per_group(graph, "max_ratio", max_ratio, MAX_RATIO)
    fewest = {g: max(least[g], g.size - _most(shares[g], g)) for g in graph.groups}
    frozen = excluded_groups(graph, exclude) | {g for g in graph.groups if residual == "inner" and g.crosses_add}
    given = _in_words(graph, frozen, round_to, min_channels, max_ratio)
    return Limits(fewest, multiples, frozenset(frozen), vectors or {}, given)


def _multiples(graph: ChannelGraph, round_to: Count | str, multiple: int) -> dict[Group, int]:
    if round_to == "auto":
        return automatic_multiples(graph, multiple)
    if isinstance(round_to, str):
        raise BudgetError(f'round_to must be "auto", a whole number or a mapping, not {round_to!r}')
    return _counts(graph, "round_to", round_to)


def automatic_multiples(graph: ChannelGraph, multiple: int) -> dict[Group, int]:
    """For each group, ``multiple``, or a smaller power of two that leaves the layers at least eight widths.

    Groups of residual streams or depthwise convolutions need only two widths for multiples up to 16 if a step is small.
    """
    found: dict[Group, int] = {}
    depthwise = _depthwise(graph)
    for group in graph.groups:
        wanted = multiple // math.gcd(multiple, _channels_in_one(group))
        coarse = group.crosses_add or not depthwise.isdisjoint(m.tensor for m in group.members)
        while wanted > 1 and wanted * _WIDTHS > group.size and not (coarse and _is_small(graph, group, wanted)):
            wanted //= 2
        found[group] = wanted
    return found


def _is_small(graph: ChannelGraph, group: Group, step: int) -> bool:
    """Whether a step is at most a vector, half of the group, and a small share of the MACs."""
    if step > min(_VECTOR, group.size // 2):
        return False
    macs = budget_model(graph, "macs")
    return macs.full - macs.total({group.variable: group.size - step}) <= _MOST_SAVED * macs.full


def _depthwise(graph: ChannelGraph) -> set[str | None]:
    """The kernels of depthwise convolutions."""
    convolutions = (call for call in graph.calls.values() if "groups" in call.arguments and "weight" in call.arguments)
    names = (parameter_name(call.arguments["weight"]) for call in convolutions if call.number("groups") > 1)
    return {name for name in names if name is not None and graph.shapes[name][1] == 1}


def _channels_in_one(group: Group) -> int:
    """The number of neighbouring channels in the producing layers that one channel of the group stands for."""
    makers = [m.axis for m in group.members if m.role in ("out", "other")]
    return math.gcd(*(_inner(axis, group.variable) for axis in makers or [group.variable]))


def _inner(axis: Axis, variable: Channels) -> int:
    if isinstance(axis, Product) and variable in axis.factors:
        return math.prod(factor.size for factor in axis.factors[axis.factors.index(variable) + 1 :])
    if isinstance(axis, Concat):
        return math.gcd(*(_inner(part, variable) for part in axis.parts))
    return 1


def _counts(graph: ChannelGraph, name: str, value: Count) -> dict[Group, int]:
    found = per_group(graph, name, value, 1)
    for count in found.values():
        check_count(BudgetError, name, count)
    return found


def _most(share: float, group: Group) -> int:
    """The share as a number of channels, rounded down."""
    check_share(BudgetError, "max_ratio", share)
    # The small number: 0.29 * 100 is 28.999999999999996, and 29 of 100 may be removed.
    return math.floor(share * group.size + 1e-9)


def _in_words(
    graph: ChannelGraph, frozen: frozenset[Group], round_to: Count | str, min_channels: Count, max_ratio: Share
) -> tuple[str, ...]:
    notes = (
        [f"{len(frozen)} of {len(graph.groups)} groups kept whole by exclude, residual or the budget"] if frozen else []
    )
    for name, value in (("round_to", round_to), ("min_channels", min_channels), ("max_ratio", max_ratio)):
        if callable(value) or isinstance(value, Mapping):
            notes.append(f"{name} of single groups")
        elif value == MAX_RATIO:
            notes.append(f"{name}={value:g}, unless another is given")
        elif value not in (1, "auto"):
            notes.append(f"{name}={value:g}")
    return tuple(notes)
