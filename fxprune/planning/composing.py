"""A plan for what another plan left, read as one plan for the original."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fxprune.axes.elements import Mask, units_of
from fxprune.errors import PlanError
from fxprune.groups import Group
from fxprune.planning.budgets import PlannedGraph
from fxprune.planning.plan import Keep, Plan, same_indices

__all__ = ["composed", "kept_shapes"]


def composed(graph: PlannedGraph, first: Plan, second: Plan, settings: Mapping[str, Any]) -> Plan:
    """The plan that does at once what two do one after the other: kept indices of kept indices.

    Args:
        graph: of the original.
        first: for the original.
        second: for the network that ``first`` leaves.
        settings: of the composed plan.

    Raises:
        PlanError: ``second`` was not made for what ``first`` leaves, or the two together are no union of the original's
            channels.
    """
    shapes = kept_shapes(first)
    for name in graph.shapes:
        if name in second.shapes and second.shapes[name] != shapes[name]:
            raise PlanError(
                f"the second plan is not for what the first leaves: {name!r} has shape {second.shapes[name]} there and "
                f"{shapes[name]} here"
            )
    keep = {name: _chained(first.keep[name], second.keep[name]) for name in graph.shapes if name in second.shapes}
    plan = Plan.from_masks(graph, {group: _mask(group, keep) for group in graph.groups}, settings)
    for name, expected in keep.items():
        if not same_indices(expected, plan.keep[name]):
            raise PlanError(f"what the second plan cuts of {name!r} is no union of the original's channels")
    return plan


def kept_shapes(plan: Plan) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor after a plan."""
    return {
        name: tuple(size if index is None else len(index) for size, index in zip(shape, plan.keep[name], strict=True))
        for name, shape in plan.shapes.items()
    }


def _chained(first: Keep, second: Keep) -> Keep:
    return tuple(b if a is None else a if b is None else a[b] for a, b in zip(first, second, strict=True))


def _mask(group: Group, keep: Mapping[str, Keep]) -> Mask:
    """The units of which anything is kept."""
    mask = np.zeros(group.size, dtype=np.bool_)
    for member in group.members:
        if member.tensor not in keep:
            continue
        units, index = units_of(member.axis, group.variable), keep[member.tensor][member.dim]
        kept = units if index is None else units[index.numpy()]
        mask[kept[kept >= 0]] = True
    return mask
