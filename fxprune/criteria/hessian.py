"""Optimal brain damage on channels: the diagonal of the Hessian from per-sample gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxprune.criteria.base import FloatArray, ScoredGraph
from fxprune.criteria.normalising import normaliser_by_name
from fxprune.criteria.rows import parameter_members, producers, unit_totals
from fxprune.errors import CriterionError
from fxprune.groups import Group
from fxprune.statistics import Seen, Sums, TapFinder

__all__ = ["Hessian"]


@dataclass(frozen=True)
class Hessian:
    """``1/2 sum of h w^2`` over a channel's weights, ``h`` the mean of squared per-sample gradients.

    LeCun et al., 1989, "Optimal Brain Damage", equation 5, with the empirical Fisher information for the Hessian's
    diagonal. The network runs forward and backward sample by sample.

    Args:
        scope: "group" (all weights that go with the channel) or "producer" (the filters that make it).
        normalise: see :class:`~fxprune.criteria.magnitude.Magnitude`; scores are in units of the loss.

    Raises:
        CriterionError: an argument is none of these.
    """

    scope: str = "group"
    normalise: str = "none"

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
        return finder.parameters(group, SquaredGradientMean)

    def score_observed(
        self, group: Group, observed: Any, tensors: Mapping[str, Tensor], graph: ScoredGraph
    ) -> FloatArray:
        """Scores of shape ``(group.size,)``."""
        members = parameter_members(group, graph) if self.scope == "group" else producers(group, tensors, graph)
        total = np.zeros(group.size)
        for member in members:
            damage = observed[member.tensor].mean() * tensors[member.tensor].detach().to(torch.float64).square()
            total += unit_totals(damage, member, group.variable) / 2
        return normaliser_by_name(self.normalise)(total)


class SquaredGradientMean(Sums):
    """The mean over samples of the squared gradient of each sample's loss by a parameter."""

    needs = "sample gradient"

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(total=shape, samples=())

    def update(self, seen: Seen) -> None:
        """Take in one sample."""
        assert seen.gradient is not None
        self.add("total", seen.gradient.to(torch.float64).square())
        self.add("samples", float(seen.samples))

    def mean(self) -> Tensor:
        """The mean squared gradient, of the shape of the parameter."""
        return self.held["total"] / max(float(self.held["samples"]), 1.0)
