"""Criteria by name."""

from __future__ import annotations

import inspect
from typing import Any

from fxprune.criteria.base import Criterion, ObservingScorer, Scorer, Selector, criterion
from fxprune.errors import CriterionError


def known_criteria() -> list[str]:
    """The names that :func:`criterion_by_name` accepts, sorted."""
    return criterion.names()


def criterion_by_name(name: str, **options: Any) -> Criterion:
    """Build the criterion of that name with its keyword options.

    Raises:
        CriterionError: the name is unknown, or the criterion does not take these options.
    """
    made = criterion[name]
    try:
        return made(**options)
    except TypeError as error:
        raise CriterionError(f"criterion {name!r} cannot be built with {options}: {error}") from error


def needs_data(criterion: Criterion) -> bool:
    """Whether a criterion looks at calibration data, by itself or in one of its parts."""
    return any(isinstance(part, ObservingScorer) for part in (criterion, *vars(criterion).values()))


def resolve_criterion(given: str | Criterion, *, seed: int = 0) -> Criterion:
    """What a user passes as ``criterion``: a name, or an object that is a scorer or a selector.

    Args:
        given: the name or the object; an object is returned as it is.
        seed: for named criteria that draw random numbers.

    Raises:
        CriterionError: an unknown name, or an object that is no criterion.
    """
    if isinstance(given, str):
        takes_seed = "seed" in inspect.signature(criterion[given]).parameters
        return criterion_by_name(given, **({"seed": seed} if takes_seed else {}))
    if isinstance(given, type) or not isinstance(given, (Scorer, ObservingScorer, Selector)):
        raise CriterionError(
            f"criterion must be a name ({', '.join(known_criteria())}) or an object with a `name` and a method "
            f"`score(group, tensors, graph)`, `observe` and `score_observed`, or `select`, not {given!r}"
        )
    return given
