"""Which groups the patterns of ``exclude`` keep whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

from fxprune.errors import ExcludeError
from fxprune.groups import Group
from fxprune.planning.budgets import PlannedGraph

__all__ = ["excluded_groups"]


def excluded_groups(graph: PlannedGraph, patterns: Sequence[str]) -> frozenset[Group]:
    """The groups that contain output channels of what the patterns match.

    A pattern (``fnmatch`` syntax, case-sensitive, ``*`` crosses dots) matches module and parameter paths; a matched
    module covers everything below it. Output channels are the dims of role "out", those of bare parameters (role
    "other") and those of selections. A pattern that finds neither, because it names only norms, keeps the widths they
    normalise.

    Raises:
        ExcludeError: a pattern matches no module with parameters or buffers, and no parameter.
    """
    if isinstance(patterns, str):
        raise ExcludeError(f"exclude takes a list of patterns; write exclude=[{patterns!r}]")
    excluded: set[Group] = set()
    for pattern in patterns:
        tensors = _matched(graph.shapes, pattern)
        outputs = set(_groups(graph, tensors, ("out", "other", "selection")))
        excluded |= outputs or set(_groups(graph, tensors, ("scale",)))
    return frozenset(excluded)


def _matched(names: Iterable[str], pattern: str) -> frozenset[str]:
    if not isinstance(pattern, str):
        raise ExcludeError(f"exclude takes patterns as strings, not {pattern!r}")
    tensors = frozenset(n for n in names if any(fnmatchcase(path, pattern) for path in _paths(n)))
    if not tensors:
        raise ExcludeError(
            f"exclude pattern {pattern!r} matches no parameter and no module that has any; patterns are matched "
            f"against paths such as {', '.join(repr(n) for n in list(names)[:3])} and the modules above them"
        )
    return tensors


def _paths(tensor: str) -> Iterator[str]:
    """The tensor's own path and those of the modules it is in."""
    parts = tensor.split(".")
    for length in range(len(parts), 0, -1):
        yield ".".join(parts[:length])


def _groups(graph: PlannedGraph, tensors: frozenset[str], roles: Sequence[str]) -> Iterator[Group]:
    for group in graph.groups:
        if any(member.role in roles and member.tensor in tensors for member in group.members):
            yield group
