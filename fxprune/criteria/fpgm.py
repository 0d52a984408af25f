"""Filter pruning via geometric median."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fxprune.criteria.base import FloatArray, ScoredGraph
from fxprune.criteria.normalising import normaliser_by_name
from fxprune.criteria.rows import distances, producer_rows, settled
from fxprune.groups import Group

__all__ = ["FPGM"]


@dataclass(frozen=True)
class FPGM:
    """``sum_j |w_i - w_j|``: the filter nearest to the geometric median of its layer goes first.

    He et al., 2019, arXiv 1811.00250, equation 4. The filters of coupled layers are laid side by side.

    Args:
        normalise: see :class:`~fxprune.criteria.magnitude.Magnitude`.

    Raises:
        CriterionError: the normaliser is unknown.
    """

    normalise: str = "mean"

    def __post_init__(self) -> None:
        normaliser_by_name(self.normalise)

    @property
    def name(self) -> str:
        """The registered name."""
        return "fpgm"

    def score(self, group: Group, tensors: Mapping[str, Tensor], graph: ScoredGraph) -> FloatArray:
        """Scores of shape ``(group.size,)``."""
        total = distances(producer_rows(group, tensors, graph)).sum(1)
        return normaliser_by_name(self.normalise)(settled(total.numpy()))
