"""Single units given back where those of a group do not cost the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fxprune.axes.elements import Mask
from fxprune.axes.expressions import Channels, variables
from fxprune.cost import CostModel, GatheredLeaf
from fxprune.groups import Group

__all__ = ["give_back_units"]

FloatArray = NDArray[np.float64]


def give_back_units(
    model: CostModel,
    masks: Mapping[Group, Mask],
    scores: Mapping[Group, FloatArray],
    *,
    need: float,
    uniform: bool,
) -> dict[Group, Mask]:
    """The masks with every unit back that the budget does not need gone.

    Where gathers hold some units of a group more often than others, its last step may overshoot by more than an
    earlier, cheaper one saved. Units come back in descending score; one that fails stands for all of its cost. A
    ``uniform`` run makes no group whole again.
    """
    returned = {group: mask.copy() for group, mask in masks.items()}
    by_variable = {group.variable: mask for group, mask in returned.items()}
    gathered, weighted = _uneven(model)
    for group, mask in returned.items():
        kinds = np.arange(group.size) if group.variable in gathered else _kinds(weighted.get(group.variable, ()))
        if kinds is None:
            continue
        refused: set[int] = set()
        for unit in _best_first(mask, scores[group]):
            last = uniform and np.count_nonzero(~mask) == 1
            if last or int(kinds[unit]) in refused:
                continue
            mask[unit] = True
            if model.full - model.exact(by_variable) < need:
                mask[unit] = False
                refused.add(int(kinds[unit]))
    return returned


def _best_first(mask: Mask, scores: FloatArray) -> list[int]:
    """The units that are gone, the highest score (and then the lowest index) first."""
    gone = np.flatnonzero(~mask)
    order: list[int] = gone[np.lexsort((gone, -scores[gone]))].tolist()
    return order


def _uneven(model: CostModel) -> tuple[set[Channels], dict[Channels, list[FloatArray]]]:
    """The variables that gathers hold, and the weights that units of others have in each width."""
    gathered: set[Channels] = set()
    weighted: dict[Channels, list[FloatArray]] = {}
    for leaf in model.leaves:
        if isinstance(leaf, GatheredLeaf):
            gathered.update(variables(leaf.axis))
        elif leaf.weights is not None:
            weighted.setdefault(leaf.variable, []).append(leaf.weights)
    return gathered, weighted


def _kinds(weights: Sequence[FloatArray]) -> NDArray[np.intp] | None:
    """Numbers that are equal for units of equal cost; None where all cost the same."""
    return np.unique(np.stack(weights), axis=1, return_inverse=True)[1].reshape(-1) if weights else None
