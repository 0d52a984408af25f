"""Network slimming: the scale of the batch norm behind a channel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fxprune.criteria.base import FloatArray, ScoredGraph
from fxprune.criteria.normalising import normaliser_by_name
from fxprune.criteria.rows import unit_totals
from fxprune.groups import Group

__all__ = ["Slimming"]


@dataclass(frozen=True)
class Slimming:
    """``|gamma|`` of batch norm, the mean over the norms of coupled layers.

    Liu et al., 2017, arXiv 1708.06519: one global threshold on scales that training has pushed down with an L1 penalty.
    A group without batch norm cannot be judged, and is cut last. What is a batch norm is told by its running variance.

    Args:
        normalise: see :class:`~fxprune.criteria.magnitude.Magnitude`; the published threshold uses none.

    Raises:
        CriterionError: the normaliser is unknown.
    """

    normalise: str = "none"

    def __post_init__(self) -> None:
        normaliser_by_name(self.normalise)

    @property
    def name(self) -> str:
        """The registered name."""
        return "slimming"

    def score(self, group: Group, tensors: Mapping[str, Tensor], graph: ScoredGraph) -> FloatArray | None:
        """Scores of shape ``(group.size,)``; None without batch norm."""
        scales = [
            unit_totals(tensors[m.tensor].abs(), m, group.variable)
            for m in group.members
            if m.role == "scale" and m.tensor.endswith("weight") and _variance_of(m.tensor) in tensors
        ]
        return normaliser_by_name(self.normalise)(np.mean(scales, axis=0)) if scales else None


def _variance_of(weight: str) -> str:
    return weight.removesuffix("weight") + "running_var"
