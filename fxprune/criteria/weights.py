"""Criteria that use weights alone: magnitude, random, LAMP, FPGM and slimming."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import FloatArray
from fxprune.criteria.base import criterion, normaliser_by_name
from fxprune.criteria.rows import TensorSums, channel_totals, distances, producer_rows, scoped_members, settled
from fxprune.errors import CriterionError, check_choice
from fxprune.util.progress import name_seed
from fxprune.util.registry import Named


@criterion("magnitude")
@dataclass(frozen=True)
class Magnitude(Named):
    """The norm of the weights that a channel owns.

    With ``scope="producer"``, a channel owns the rows of the weights that make it: ``sum |w|`` for ``p=1`` (Li et al.,
    2017, arXiv 1608.08710), ``sqrt(sum w^2)`` for ``p=2`` (He et al., 2018, arXiv 1808.06866). With ``scope="group"``,
    it owns its entries in all parameters of producers, consumers and norms: ``sum |w|^p`` (Fang et al., 2023, arXiv
    2301.12900, equation 5). Buffers never count.

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
        check_choice(CriterionError, "scope", self.scope, ("group", "producer"))
        normaliser_by_name(self.normalise)

    def score(self, group: Group, tensors: Mapping[str, Tensor], graph: ChannelGraph) -> FloatArray:
        """Norms of shape ``(group.size,)``, scaled by ``normalise``."""
        sums = TensorSums.of(tensors)
        total = np.zeros(group.size, dtype=np.float64)
        for member in scoped_members(self.scope, group, sums, graph):
            total += sums.channel_sums(member, group.variable, self.p)
        norm = np.sqrt(total) if self.p == 2 and self.scope == "producer" else total
        return normaliser_by_name(self.normalise)(norm)


@criterion("random")
@dataclass(frozen=True)
class Random(Named):
    """Uniform scores in [0, 1). Each group has its own random stream, so its scores do not depend on other groups.

    Args:
        seed: equal seeds give equal scores.
    """

    seed: int = 0

    def score(self, group: Group, tensors: Mapping[str, Tensor], graph: ChannelGraph) -> FloatArray:
        stream = np.random.default_rng([self.seed % (1 << 64), name_seed(group.name)])
        return stream.random(group.size)


@criterion("lamp")
@dataclass(frozen=True)
class Lamp(Named):
    """A channel's energy divided by that of all channels of its group that are at least as strong.

    Lee et al., 2021, arXiv 2010.07611, equation 2, with the sum of squares of a channel's weights instead of a single
    weight; one global sort. The strongest channel of every group scores 1.

    Args:
        scope: "group" or "producer", as in :class:`~fxprune.criteria.weights.Magnitude`.

    Raises:
        CriterionError: an unknown scope.
    """

    scope: str = "group"

    def __post_init__(self) -> None:
        Magnitude(2, self.scope)

    def score(self, group: Group, tensors: Mapping[str, Tensor], graph: ChannelGraph) -> FloatArray:
        """Scores of shape ``(group.size,)``, in [0, 1]."""
        found = Magnitude(2, self.scope, "none").score(group, tensors, graph)
        norms = np.sqrt(found) if self.scope == "group" else found
        return normaliser_by_name("lamp")(norms)


@criterion("fpgm")
@dataclass(frozen=True)
class FPGM(Named):
    """``sum_j |w_i - w_j|``: the filter nearest to the geometric median of its layer is removed first.

    He et al., 2019, arXiv 1811.00250, equation 4. The filters of coupled layers are concatenated.

    Args:
        normalise: see :class:`~fxprune.criteria.weights.Magnitude`.

    Raises:
        CriterionError: the normaliser is unknown.
    """

    normalise: str = "mean"

    def __post_init__(self) -> None:
        normaliser_by_name(self.normalise)

    def score(self, group: Group, tensors: Mapping[str, Tensor], graph: ChannelGraph) -> FloatArray:
        total = distances(producer_rows(group, tensors, graph)).sum(1)
        return normaliser_by_name(self.normalise)(settled(total.numpy()))


@criterion("slimming")
@dataclass(frozen=True)
class Slimming(Named):
    """``|gamma|`` of batch norm, the mean over the norms of coupled layers.

    Liu et al., 2017, arXiv 1708.06519: one global threshold on scales that training has pushed down with an L1 penalty.
    A group without batch norm cannot be judged, and is cut last. A batch norm is recognised by its running variance.

    Args:
        normalise: see :class:`~fxprune.criteria.weights.Magnitude`; the published threshold uses none.

    Raises:
        CriterionError: the normaliser is unknown.
    """

    normalise: str = "none"

    def __post_init__(self) -> None:
        normaliser_by_name(self.normalise)

    def score(self, group: Group, tensors: Mapping[str, Tensor], graph: ChannelGraph) -> FloatArray | None:
        """Scores of shape ``(group.size,)``; None without batch norm."""
        scales = [
            channel_totals(tensors[m.tensor].abs(), m, group.variable)
            for m in group.members
            if m.role == "scale" and m.tensor.endswith("weight") and _variance_of(m.tensor) in tensors
        ]
        return normaliser_by_name(self.normalise)(np.mean(scales, axis=0)) if scales else None


def _variance_of(weight: str) -> str:
    return weight.removesuffix("weight") + "running_var"
