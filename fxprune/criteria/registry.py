"""Criteria by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from fxprune.criteria.base import Criterion, ObservingScorer, Scorer, Selector
from fxprune.criteria.entropy import FeatureEntropy
from fxprune.criteria.feature_distance import FeatureDistance
from fxprune.criteria.features import CHIP, APoZ, HRank, MeanActivation
from fxprune.criteria.filter_similarity import FilterSimilarity
from fxprune.criteria.gradients import Hessian, Taylor
from fxprune.criteria.information_fusion import InformationFusion
from fxprune.criteria.multi_source import MultiSource
from fxprune.criteria.parallel import Parallel
from fxprune.criteria.reconstruction import Reconstruction
from fxprune.criteria.thinet import ThiNet
from fxprune.criteria.weights import FPGM, Lamp, Magnitude, Random, Slimming
from fxprune.errors import CriterionError

__all__ = ["criterion_by_name", "known_criteria", "resolve_criterion"]

_CRITERIA: dict[str, Callable[..., Criterion]] = {
    "apoz": APoZ,
    "chip": CHIP,
    "feature_distance": FeatureDistance,
    "feature_entropy": FeatureEntropy,
    "filter_similarity": FilterSimilarity,
    "fpgm": FPGM,
    "hessian": Hessian,
    "hrank": HRank,
    "information_fusion": InformationFusion,
    "lamp": Lamp,
    "magnitude": Magnitude,
    "mean_activation": MeanActivation,
    "multi_source": MultiSource,
    "parallel": Parallel,
    "random": Random,
    "reconstruction": Reconstruction,
    "slimming": Slimming,
    "taylor": Taylor,
    "taylor_activations": partial(Taylor, of="activations"),
    "thinet": ThiNet,
}
_SEEDED = frozenset({"random", "thinet"})


def known_criteria() -> list[str]:
    """The names that :func:`criterion_by_name` accepts, sorted."""
    return sorted(_CRITERIA)


def criterion_by_name(name: str, **options: Any) -> Criterion:
    """Build the criterion of that name with its keyword options.

    Raises:
        CriterionError: the name is unknown, or the criterion does not take these options.
    """
    if name not in _CRITERIA:
        raise CriterionError(f"unknown criterion {name!r}; choose one of {', '.join(known_criteria())}")
    try:
        return _CRITERIA[name](**options)
    except TypeError as error:
        raise CriterionError(f"criterion {name!r} cannot be built with {options}: {error}") from error


def resolve_criterion(criterion: str | Criterion, *, seed: int = 0) -> Criterion:
    """What a user passes as ``criterion``: a name, or an object that is a scorer or a selector.

    Args:
        criterion: the name or the object; an object is returned as it is.
        seed: for named criteria that draw random numbers.

    Raises:
        CriterionError: an unknown name, or an object that is no criterion.
    """
    if isinstance(criterion, str):
        return criterion_by_name(criterion, **({"seed": seed} if criterion in _SEEDED else {}))
    if isinstance(criterion, type) or not isinstance(criterion, (Scorer, ObservingScorer, Selector)):
        raise CriterionError(
            f"criterion must be a name ({', '.join(known_criteria())}) or an object with a `name` and a method "
            f"`score(group, tensors, graph)`, `observe` and `score_observed`, or `select`, not {criterion!r}"
        )
    return criterion
