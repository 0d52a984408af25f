"""Each paper's own criterion, as its released code sets it for a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fxprune.criteria import FeatureEntropy, criterion_by_name
from fxprune.errors import CriterionError

# What the released scripts of Shao et al. set for a network where it is not the default.
_ENTROPY: dict[str, dict[str, Any]] = {
    "ResNet-56": {"normalize": "variance", "tap": "producer"},
    "ResNet-164": {"transform": "plain", "normalize": "variance", "tap": "producer"},
    "DenseNet-40": {"transform": "plain"},
}
_PARALLEL: dict[str, dict[str, Any]] = {"ResNet-56": {"tap": "producer"}}


def criterion_for(method: str, network: str) -> Any:
    """The criterion object.

    Raises:
        CriterionError: the method is unknown, or its options do not fit.
    """
    makers: dict[str, Callable[[], Any]] = {
        "entropy": lambda: criterion_by_name("feature_entropy", **_ENTROPY.get(network, {})),
        "parallel": lambda: criterion_by_name("parallel", first=FeatureEntropy(**_PARALLEL.get(network, {}))),
        "filter_similarity": lambda: criterion_by_name("filter_similarity"),
        "feature_distance": lambda: criterion_by_name("feature_distance"),
        "information_fusion": lambda: criterion_by_name("information_fusion"),
    }
    if method not in makers:
        raise CriterionError(f"no paper prunes by {method!r}: choose one of {', '.join(makers)}")
    return makers[method]()
