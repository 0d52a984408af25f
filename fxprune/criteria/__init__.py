"""Criteria: what says which channels matter. A scorer gives one number per unit of each group; higher stays."""

from fxprune.criteria.base import Criterion, ScoredGraph, Scorer, score_groups
from fxprune.criteria.magnitude import Magnitude
from fxprune.criteria.random import Random
from fxprune.criteria.registry import criterion_by_name, known_criteria, resolve_criterion

__all__ = [
    "Criterion",
    "Magnitude",
    "Random",
    "ScoredGraph",
    "Scorer",
    "criterion_by_name",
    "known_criteria",
    "resolve_criterion",
    "score_groups",
]
