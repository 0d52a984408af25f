"""Which groups a pattern of ``exclude``, ``ratio`` or a limit speaks of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from fxprune.errors import BudgetError, ExcludeError, FxpruneError
from fxprune.groups import Group
from fxprune.planning.budgets import PlannedGraph

__all__ = ["excluded_groups", "per_group"]

Value = TypeVar("Value")


def excluded_groups(graph: PlannedGraph, patterns: Sequence[str]) -> frozenset[Group]:
    """The groups that contain output channels of what the patterns match.

    A group's own name means that group. Any other pattern (``fnmatch`` syntax, case-sensitive, ``*`` crosses dots)
    matches module and parameter paths; a matched module covers everything below it. Output channels are the dims of
    role "out", those of bare parameters (role "other") and those of selections. A pattern that finds neither, because
    it names only norms, keeps the widths they normalise.

    Raises:
        ExcludeError: a pattern matches no module with parameters or buffers, and no parameter.
    """
    if isinstance(patterns, str):
        raise ExcludeError(f"exclude takes a list of patterns; write exclude=[{patterns!r}]")
    return frozenset(group for pattern in patterns for group in _groups(graph, pattern, "exclude", ExcludeError))


def per_group(
    graph: PlannedGraph, option: str, value: Value | Mapping[str, Value] | Callable[[Group], Value], rest: Value
) -> dict[Group, Value]:
    """The value of an option for each group.

    Args:
        graph: the channel graph.
        option: its name, for messages.
        value: one for all groups, or a mapping from patterns as in :func:`excluded_groups`; the first that matches a
            group decides; or a function of the group.
        rest: the value of groups that no pattern matches.

    Raises:
        BudgetError: a pattern matches no group.
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


def _groups(graph: PlannedGraph, pattern: str, option: str, error: type[FxpruneError]) -> set[Group]:
    if not isinstance(pattern, str):
        raise error(f"{option} takes modules of the model, or patterns as strings, not {pattern!r:.80}")
    named = {group for group in graph.groups if group.name == pattern}
    if named:
        return named
    tensors = frozenset(n for n in graph.shapes if _matches(n, pattern))
    if not tensors:
        raise error(
            f"{option} pattern {pattern!r} matches no parameter and no module that has any; patterns are matched "
            f"against paths such as {', '.join(repr(n) for n in list(graph.shapes)[:3])} and the modules above them"
        )
    outputs = set(_holding(graph, tensors, ("out", "other", "selection")))
    return outputs or set(_holding(graph, tensors, ("scale",)))


def _matches(tensor: str, pattern: str) -> bool:
    """Whether the pattern is for the tensor's own path or for that of a module it is in."""
    parts = tensor.split(".")
    return any(fnmatchcase(".".join(parts[:length]), pattern) for length in range(len(parts), 0, -1))


def _holding(graph: PlannedGraph, tensors: frozenset[str], roles: Sequence[str]) -> Iterator[Group]:
    for group in graph.groups:
        if any(member.role in roles and member.tensor in tensors for member in group.members):
            yield group


def _why(graph: PlannedGraph, pattern: str) -> str:
    reasons = (f"{p.tensor} dim {p.dim}: {p.reason}" for p in graph.pinned if _matches(p.tensor, pattern))
    first = next(reasons, None)
    return f" ({first})" if first else ""
