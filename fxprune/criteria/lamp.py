"""Layer-adaptive magnitude, on channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fxprune.criteria.base import FloatArray, ScoredGraph
from fxprune.criteria.magnitude import Magnitude
from fxprune.criteria.normalising import normaliser_by_name
from fxprune.groups import Group

__all__ = ["Lamp"]


@dataclass(frozen=True)
class Lamp:
    """A channel's energy divided by that of all channels of its group that are at least as strong.

    Lee et al., 2021, arXiv 2010.07611, equation 2, with the sum of squares of a channel's weights for the single weight
    there; one global sort. The strongest channel of every group scores 1.

    Args:
        scope: "group" or "producer", as in :class:`~fxprune.criteria.magnitude.Magnitude`.

    Raises:
        CriterionError: an unknown scope.
    """

    scope: str = "group"

    def __post_init__(self) -> None:
        Magnitude(2, self.scope)

    @property
    def name(self) -> str:
        """The registered name."""
        return "lamp"

    def score(self, group: Group, tensors: Mapping[str, Tensor], graph: ScoredGraph) -> FloatArray:
        """Scores of shape ``(group.size,)``, in [0, 1]."""
        found = Magnitude(2, self.scope, "none").score(group, tensors, graph)
        norms = np.sqrt(found) if self.scope == "group" else found
        return normaliser_by_name("lamp")(norms)
