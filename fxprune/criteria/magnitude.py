"""Weight magnitude: channels whose weights are small matter least."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fxprune.criteria.base import FloatArray, ScoredGraph
from fxprune.criteria.normalising import normaliser_by_name
from fxprune.criteria.rows import scoped_members
from fxprune.criteria.sums import TensorSums
from fxprune.errors import CriterionError
from fxprune.groups import Group

__all__ = ["Magnitude"]


@dataclass(frozen=True)
class Magnitude:
    """The norm of the weights that a channel owns.

    With ``scope="producer"`` these are the rows of the weights that make the channel: ``sum |w|`` for ``p=1`` (Li et
    al., 2017, arXiv 1608.08710), ``sqrt(sum w^2)`` for ``p=2`` (He et al., 2018, arXiv 1808.06866). With
    ``scope="group"`` they are all parameters tied to it, producers, consumers and affine ones: ``sum |w|^p`` (Fang et
    al., 2023, arXiv 2301.12900, equation 5). Buffers never count.

    Args:
        p: 1 or 2.
        scope: "group" or "producer".
        normalise: how scores are scaled within a group before groups are compared: "none", "mean", "max", "sum",
            "minmax", "zscore" or "lamp".

    Raises:
        CriterionError: an argument is none of these.
    """

    p: int = 2
    scope: str = "group"
    normalise: str = "mean"

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise CriterionError(f"magnitude takes p=1 or p=2, not {self.p!r}")
        if self.scope not in ("group", "producer"):
            raise CriterionError(f'magnitude takes scope="group" or scope="producer", not {self.scope!r}')
        normaliser_by_name(self.normalise)

    @property
    def name(self) -> str:
        """The registered name."""
        return "magnitude"

    def score(self, group: Group, tensors: Mapping[str, Tensor], graph: ScoredGraph) -> FloatArray:
        """Norms of shape ``(group.size,)``, scaled by ``normalise``."""
        sums = TensorSums.of(tensors)
        total = np.zeros(group.size, dtype=np.float64)
        for member in scoped_members(self.scope, group, sums, graph):
            total += sums.unit_sums(member, group.variable, self.p)
        norm = np.sqrt(total) if self.p == 2 and self.scope == "producer" else total
        return normaliser_by_name(self.normalise)(norm)
