"""The error for a budget out of reach: how far one can get, and what stands in the way."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fxprune.axes.elements import Mask
from fxprune.cost import CostModel
from fxprune.errors import BudgetError
from fxprune.groups import Group, PinnedWidth
from fxprune.planning.budgets import PlannedGraph
from fxprune.planning.limits import Limits

__all__ = ["out_of_reach"]

_SHOWN = 4


def out_of_reach(
    graph: PlannedGraph,
    model: CostModel,
    narrowest: Mapping[Group, Mask],
    limits: Limits,
    *,
    asked: float,
    budget: str,
) -> BudgetError:
    """The error to raise; ``narrowest`` holds the masks with every group as narrow as its limits allow."""
    if model.full <= 0:
        return BudgetError(f"nothing to remove: this network has no {budget} that fxprune counts", reachable=0.0)
    masks = {group.variable: mask for group, mask in narrowest.items()}
    reachable = _reachable(model.full - model.exact(masks), model.full)
    pinned = _most_costly_first(graph, model.by_owner(masks))
    shown = math.floor(reachable * 1e4) / 1e4
    message = f"ratio {asked:g} of {budget} is out of reach: at most {shown:g} can be removed."
    if pinned:
        widths = "; ".join(f"{p.tensor} dim {p.dim} ({p.size} wide): {p.reason}" for p in pinned[:_SHOWN])
        more = f"; and {len(pinned) - _SHOWN} more" if len(pinned) > _SHOWN else ""
        message += f" Pinned widths that stand in the way, most costly first: {widths}{more}."
    message += _limit_note(graph, limits)
    return BudgetError(message, reachable=reachable, pinned=[f"{p.tensor} dim {p.dim}" for p in pinned])


def _reachable(saved: float, full: float) -> float:
    """The largest ratio whose product with the full cost is not above what can be saved."""
    ratio = max(saved, 0.0) / full
    while ratio * full > saved and ratio > 0:
        ratio = math.nextafter(ratio, 0.0)
    return ratio


def _most_costly_first(graph: PlannedGraph, costs: Mapping[str, float]) -> list[PinnedWidth]:
    def rank(pinned: PinnedWidth) -> tuple[float, int, str, int]:
        elements = math.prod(graph.shapes.get(pinned.tensor, (pinned.size,)))
        return -_owner_cost(pinned.tensor, costs), -elements, pinned.tensor, pinned.dim

    return sorted(graph.pinned, key=rank)


def _owner_cost(tensor: str, costs: Mapping[str, float]) -> float:
    """What the tensor, or the module it belongs to, still costs."""
    path = tensor
    while path not in costs and "." in path:
        path = path.rpartition(".")[0]
    return costs.get(path, 0.0)


def _limit_note(graph: PlannedGraph, limits: Limits) -> str:
    notes = []
    if limits.frozen:
        notes.append(f"{len(limits.frozen)} of {len(graph.groups)} groups kept whole by exclude or residual")
    if limits.round_to > 1:
        notes.append(f"round_to={limits.round_to}")
    if limits.min_channels > 1:
        notes.append(f"min_channels={limits.min_channels}")
    if isinstance(limits.max_ratio, Mapping):
        notes.append(f"max_ratio for {len(limits.max_ratio)} groups")
    elif limits.max_ratio < 1:
        notes.append(f"max_ratio={limits.max_ratio:g}")
    return f" Limits in force: {', '.join(notes)}." if notes else ""
