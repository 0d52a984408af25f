"""The report of a compilation, put together from what its passes found."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from fxprune.analysis import ChannelGraph
from fxprune.axes.elements import Mask
from fxprune.axes.expressions import Channels
from fxprune.cost import CostModel
from fxprune.groups import Group
from fxprune.options import setting
from fxprune.planning import Plan, budget_model
from fxprune.reporting import GroupRow, OpaqueRow, PinnedRow, Report
from fxprune.verifying import Proof

__all__ = ["summarise"]


def summarise(
    graph: ChannelGraph,
    model: nn.Module,
    plan: Plan,
    masks: Mapping[Channels, Mask],
    proof: Proof | None,
    unproven: str,
    seconds: Mapping[str, float],
) -> Report:
    """Costs before and after, a row for each group, pin and opaque call, the proof, and the plan itself."""
    budget = setting(plan, "budget", "macs")
    models = {"macs": CostModel(graph.macs), "params": CostModel(graph.params), budget: budget_model(graph, budget)}
    before = {name: cost.exact({}) for name, cost in models.items()}
    after = {name: cost.exact(masks) for name, cost in models.items()}
    return Report(
        ratio=float(setting(plan, "ratio", math.nan)),
        budget=budget,
        budget_before=before[budget],
        budget_after=after[budget],
        macs_before=round(before["macs"]),
        macs_after=round(after["macs"]),
        parameters_before=round(before["params"]),
        parameters_after=round(after["params"]),
        groups=tuple(_group_row(g, masks) for g in graph.groups),
        pinned=tuple(PinnedRow(f"{p.tensor} dim {p.dim}", p.size, p.reason, p.cause) for p in graph.pinned),
        opaque=tuple(OpaqueRow(o.op, o.reason, o.source, o.parameters, round(o.macs)) for o in graph.opaque),
        proof=proof,
        unproven=unproven,
        seconds=dict(seconds),
        settings=dict(plan.settings),
        plan=plan,
        network=type(model).__name__,
    )


def _group_row(group: Group, masks: Mapping[Channels, Mask]) -> GroupRow:
    members = tuple(dict.fromkeys(m.tensor for m in group.members))
    return GroupRow(group.name, group.size, int(masks[group.variable].sum()), members)
