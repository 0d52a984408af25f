"""Optimal brain damage on channels: the diagonal of the Hessian from per-sample gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxprune.criteria.base import FloatArray, ScoredGraph
from fxprune.criteria.gradients import gradient_powers
from fxprune.criteria.normalising import normaliser_by_name
from fxprune.criteria.rows import scoped_members, unit_totals
from fxprune.errors import CriterionError
from fxprune.groups import Group
from fxprune.statistics import TapFinder

__all__ = ["Hessian"]


@dataclass(frozen=True)
class Hessian:
    """``1/2 sum of h w^2`` over a channel's weights, ``h`` the mean of squared per-sample gradients.

    LeCun et al., 1989, "Optimal Brain Damage", equation 5, with the empirical Fisher information for the Hessian's
    diagonal. The network runs forward and backward sample by sample. The diagonal leaves out how the weights of one
    channel act together, which differs from layer to layer, so scores are scaled in each group before groups are
    compared.

    Args:
        scope: "group" (all weights that go with the channel) or "producer" (the filters that make it).
        normalise: see :class:`~fxprune.criteria.magnitude.Magnitude`; with "none" scores are in units of the loss.

    Raises:
        CriterionError: an argument is none of these.
    """

    scope: str = "group"
    normalise: str = "mean"

    def __post_init__(self) -> None:
        if self.scope not in ("group", "producer"):
            raise CriterionError(f'hessian takes scope="group" or scope="producer", not {self.scope!r}')
        normaliser_by_name(self.normalise)

    @property
    def name(self) -> str:
        """The registered name."""
        return "hessian"

    def observe(self, group: Group, finder: TapFinder, tensors: Mapping[str, Tensor]) -> Any:
        """Squared gradients of every weight of the group."""
        return finder.parameters(group, gradient_powers("sample", 2))

    def score_observed(
        self, group: Group, observed: Any, tensors: Mapping[str, Tensor], graph: ScoredGraph
    ) -> FloatArray:
        """Scores of shape ``(group.size,)``."""
        total = np.zeros(group.size)
        for member in scoped_members(self.scope, group, tensors, graph):
            damage = observed[member.tensor].mean() * tensors[member.tensor].detach().to(torch.float64).square()
            total += unit_totals(damage, member, group.variable) / 2
        return normaliser_by_name(self.normalise)(total)
