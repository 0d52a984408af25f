"""What a criterion is, and the one place that runs it and checks what it returned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fxprune.criteria.sums import TensorSums
from fxprune.errors import CriterionError
from fxprune.groups import Group, Term

__all__ = ["Criterion", "FloatArray", "ScoredGraph", "Scorer", "score_groups"]

FloatArray = NDArray[np.float64]


class ScoredGraph(Protocol):
    """What a criterion may ask of the channel graph."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups from which something may be removed."""
        ...

    @property
    def params(self) -> tuple[Term, ...]:
        """One term per parameter; its owner is the parameter's name. Buffers have none."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """Gives every unit of a group one number; the allocator removes the units with the lowest."""

    @property
    def name(self) -> str:
        """The name it is chosen by, and that the plan records."""
        ...

    def score(self, group: Group, tensors: Mapping[str, Tensor], graph: ScoredGraph) -> FloatArray:
        """Scores of shape ``(group.size,)``, finite, higher = keep.

        Args:
            group: the group; its members name the tensor dims that its units cut.
            tensors: every parameter and buffer by its first state-dict name.
            graph: the channel graph the group belongs to.
        """
        ...


# A selector (cost model and limits in, keep set out) is the other kind of criterion; it joins this union.
Criterion = Scorer


def score_groups(
    criterion: Criterion, graph: ScoredGraph, tensors: Mapping[str, Tensor]
) -> dict[Group, FloatArray] | None:
    """Score every group, or return None where the weights are on the meta device and there is nothing to score by.

    Raises:
        CriterionError: scores of the wrong shape, or not finite.
    """
    if any(tensors[m.tensor].is_meta for group in graph.groups for m in group.members if m.tensor in tensors):
        return None
    sums = TensorSums(tensors)
    return {group: _checked(criterion, group, criterion.score(group, sums, graph)) for group in graph.groups}


def _checked(criterion: Criterion, group: Group, scores: FloatArray) -> FloatArray:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape != (group.size,):
        raise CriterionError(
            f"criterion {criterion.name!r} gave scores of shape {scores.shape} for group {group.name!r}; "
            f"it has {group.size} channels and needs shape ({group.size},)"
        )
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise CriterionError(
            f"criterion {criterion.name!r} gave {scores[bad[0]]} for channel {int(bad[0])} of group {group.name!r} "
            f"({len(bad)} of {group.size} scores are not finite); look for NaN or infinite values in "
            f"{', '.join(dict.fromkeys(m.tensor for m in group.members[:3])) or 'its inputs'}"
        )
    return scores
