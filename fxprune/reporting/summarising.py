"""The report of a compilation, put together from what its passes found."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fxprune.analysis.drawing import draw_network
from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import Mask
from fxprune.axes.expressions import Channels
from fxprune.cost.budgets import CostModel, check_ratio
from fxprune.planning import Plan, budget_model
from fxprune.planning.plan import setting
from fxprune.proof import Proof
from fxprune.reporting.report import CostRow, GoalRow, GroupRow, OpaqueRow, PinnedRow, Report, ScoreRow
from fxprune.util.tables import machine

FloatArray = NDArray[np.float64]
_INTERVALS = 24


def summarise(
    graph: ChannelGraph,
    model: nn.Module,
    plan: Plan,
    masks: Mapping[Channels, Mask],
    proof: Proof | None,
    unproven: str,
    seconds: Mapping[str, float],
    scores: Mapping[Group, FloatArray] | None = None,
    notes: tuple[str, ...] = (),
) -> Report:
    """Costs before and after, a row for each group, pin and opaque call, the proof, and the plan itself."""
    budget = setting(plan, "budget", "macs")
    budgets = {name: check_ratio(asked) for name, asked in setting(plan, "budgets", {}).items()}
    models = {"macs": CostModel(graph.macs), "params": CostModel(graph.params)}
    models |= {name: budget_model(graph, name) for name in ("memory", budget, *budgets)}
    before = {name: cost.exact({}) for name, cost in models.items()}
    after = {name: cost.exact(masks) for name, cost in models.items()}
    return Report(
        ratio=None if isinstance(plan.settings.get("ratio"), (dict, NoneType)) else float(setting(plan, "ratio", 0.0)),
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
        costs=_cost_rows(models["macs"], models["params"], masks),
        scores=tuple(_score_row(g, values, masks[g.variable]) for g, values in (scores or {}).items()),
        drawing=draw_network(graph),
        environment=machine(),
        notes=(*notes, *dict.fromkeys(c.notes["probed"] for c in graph.calls.values() if "probed" in c.notes)),
        goals=tuple(GoalRow(name, asked, before[name], after[name]) for name, asked in budgets.items()),
        memory_before=before["memory"],
        memory_after=after["memory"],
    )


def _group_row(group: Group, masks: Mapping[Channels, Mask]) -> GroupRow:
    members = tuple(dict.fromkeys(m.tensor for m in group.members))
    return GroupRow(group.name, group.size, int(masks[group.variable].sum()), members)


def _cost_rows(macs: CostModel, params: CostModel, masks: Mapping[Channels, Mask]) -> tuple[CostRow, ...]:
    rows: dict[str, list[int]] = {}
    for first, (cost, kept) in enumerate((cost, kept) for cost in (macs, params) for kept in ({}, masks)):
        for owner, value in cost.by_owner(kept).items():
            # A parameter's elements belong to the layer that holds it.
            name = owner if cost is macs else owner.rpartition(".")[0] or owner
            row = rows.setdefault(name, [0, 0, 0, 0])
            row[first] += round(value)
    return tuple(CostRow(name, (row[0], row[1]), (row[2], row[3])) for name, row in rows.items())


def _score_row(group: Group, scores: FloatArray, kept: Mask) -> ScoreRow:
    low, high = float(scores.min()), float(scores.max())
    counts = (np.histogram(scores[part], _INTERVALS, (low, high))[0] for part in (kept, ~kept))
    return ScoreRow(group.name, low, high, *(tuple(count.tolist()) for count in counts))
