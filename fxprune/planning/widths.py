"""Scores that choose widths by what can be recovered, whatever criterion chooses the channels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fxprune.analysis import ChannelGraph
from fxprune.criteria import Criterion, Reconstruction, judge
from fxprune.criteria.selecting import Selection
from fxprune.errors import CriterionError
from fxprune.groups import Group
from fxprune.planning.budgets import budget_model
from fxprune.statistics import Collector

__all__ = ["width_scores"]

Scores = Mapping[Group, NDArray[np.float64]]


def width_scores(
    graph: ChannelGraph,
    criterion: Criterion,
    scores: Scores | Selection | None,
    tensors: Mapping[str, Tensor],
    collector: Collector | None,
    budget: str,
) -> dict[Group, NDArray[np.float64]] | None:
    """Per unit the error that its removal adds for each unit of the budget that it saves, in the order of ``scores``.

    The error is that of :class:`~fxprune.criteria.reconstruction.Reconstruction`. What a unit saves is counted at full
    width. Ranking the units of all groups by it is the greedy way to the least error at a budget.

    Args:
        graph: the channel graph.
        criterion: the criterion.
        scores: what it says: per group one number per unit, higher = keep; None without weights.
        tensors: every parameter and buffer by name.
        collector: runs over the calibration data.
        budget: what is to be saved.

    Raises:
        CriterionError: the criterion selects and gives no scores.
        CalibrationError: there is no calibration.
    """
    if scores is None:
        return None
    if not isinstance(scores, Mapping):
        raise CriterionError('scope="reconstruction" needs a criterion that scores channels, not one that selects them')
    known = isinstance(criterion, Reconstruction)
    errors = scores if known else judge(Reconstruction(order=scores), graph, tensors, collector)
    assert isinstance(errors, Mapping)
    model = budget_model(graph, budget)
    saved = {group: max(model.marginal(group.variable, {}), 0.0) for group in errors}
    least = min((s for s in saved.values() if s > 0), default=1.0)
    return {group: found * (least / (saved[group] or least)) for group, found in errors.items()}
