"""Random scores: the baseline every criterion should beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fxprune.criteria.base import FloatArray, ScoredGraph
from fxprune.groups import Group
from fxprune.model_paths import name_seed

__all__ = ["Random"]


@dataclass(frozen=True)
class Random:
    """Uniform scores in [0, 1). Each group draws from its own stream, so that its scores depend on no other group.

    Args:
        seed: equal seeds give equal scores.
    """

    seed: int = 0

    @property
    def name(self) -> str:
        """The registered name."""
        return "random"

    def score(self, group: Group, tensors: Mapping[str, Tensor], graph: ScoredGraph) -> FloatArray:
        """Scores of shape ``(group.size,)``."""
        stream = np.random.default_rng([self.seed % (1 << 64), name_seed(group.name)])
        return stream.random(group.size)
