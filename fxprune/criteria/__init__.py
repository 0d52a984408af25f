"""Criteria: they decide which channels matter.

A scorer gives one number per channel of each group, from weights or from observations on calibration data; higher
scores stay. A selector chooses the channels that stay, with one knob that planning turns until the budget is met.

>>> from fxprune.criteria import criterion_by_name
>>> criterion_by_name("magnitude", p=1)
Magnitude(p=1, scope='group', normalise='mean')
"""

from fxprune.criteria.base import Criterion, ObservingScorer, Scorer, Selection, Selector
from fxprune.criteria.combining import Combination, Minimum, Parallel, Product, RankAverage, WeightedSum
from fxprune.criteria.feature_distance import FeatureDistance
from fxprune.criteria.features import CHIP, APoZ, FeatureCriterion, FeatureEntropy, HRank, MeanActivation
from fxprune.criteria.gradients import Hessian, Taylor
from fxprune.criteria.information_fusion import FilterSimilarity, InformationFusion, fused_filters, temperature_at
from fxprune.criteria.judging import (
    Study,
    criterion_by_name,
    judge,
    known_criteria,
    needs_data,
    resolve_criterion,
    score_groups,
)
from fxprune.criteria.multi_source import MultiSource
from fxprune.criteria.reconstruction import Reconstruction
from fxprune.criteria.thinet import ThiNet
from fxprune.criteria.weights import FPGM, Lamp, Magnitude, Random, Slimming

__all__ = [
    "CHIP", "FPGM", "APoZ", "Combination", "Criterion", "FeatureCriterion", "FeatureDistance", "FeatureEntropy",
    "FilterSimilarity", "HRank", "Hessian", "InformationFusion", "Lamp", "Magnitude", "MeanActivation", "Minimum",
    "MultiSource", "ObservingScorer", "Parallel", "Product", "Random", "RankAverage", "Reconstruction", "Scorer",
    "Selection", "Selector", "Slimming", "Study", "Taylor", "ThiNet", "WeightedSum", "criterion_by_name",
    "fused_filters", "judge", "known_criteria", "needs_data", "resolve_criterion", "score_groups", "temperature_at",
]  # fmt: skip
