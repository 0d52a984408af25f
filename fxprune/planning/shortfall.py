"""The error for a budget out of reach: how far one can get, and what stands in the way."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fxprune.axes.elements import Mask
from fxprune.errors import BudgetError
from fxprune.groups import Group, PinnedWidth
from fxprune.planning.budgets import PlannedGraph, budget_model
from fxprune.planning.limits import Limits

__all__ = ["out_of_reach"]

_SHOWN = 4


def out_of_reach(
    graph: PlannedGraph, budget: str, narrowest: Mapping[Group, Mask], limits: Limits, *, asked: float
) -> BudgetError:
    """The error to raise; ``narrowest`` holds the masks with every group as narrow as its limits allow."""
    model = budget_model(graph, budget)
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
    message += _unseen(graph, model.full) if budget == "macs" else ""
    message += f" Limits in force: {', '.join(limits.given)}." if limits.given else ""
    return BudgetError(message, reachable=reachable, pinned=[f"{p.tensor} dim {p.dim}" for p in pinned])


def _unseen(graph: PlannedGraph, full: float) -> str:
    """What is a constant, because it lies in parts that are not seen into."""
    held = sorted(((term.coefficient / full, term.owner) for term in graph.macs if not term.axes), reverse=True)
    parts = ", ".join(f"{owner} ({share:.1%} of the whole)" for share, owner in held[:_SHOWN])
    return f" Opaque parts, of which nothing can go: {parts}." if held else ""


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
