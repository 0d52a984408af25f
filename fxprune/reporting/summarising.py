"""Makes the report of a compilation, and the summary of an analysis as text and JSON data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Any

import numpy as np
from rich.console import Group as Stack
from rich.console import RenderableType
from rich.text import Text
from torch import nn

from fxprune.analysis.drawing import draw_network
from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import FloatArray, Mask
from fxprune.axes.expressions import Channels, Term, variables
from fxprune.cost.budgets import CostModel, check_ratio
from fxprune.planning import Plan, budget_model
from fxprune.planning.plan import setting
from fxprune.proof import Proof
from fxprune.reporting.report import MACS_MEANING, CostRow, GoalRow, GroupRow, OpaqueRow, PinnedRow, Report, ScoreRow
from fxprune.util.tables import add_row, listing, machine, new_table, percent, with_rest

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
    models = {name: budget_model(graph, name) for name in ("macs", "params", "memory", budget, *budgets)}
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
        groups=tuple(
            GroupRow(g.name, g.size, int(masks[g.variable].sum()), tuple(dict.fromkeys(m.tensor for m in g.members)))
            for g in graph.groups
        ),
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
    places = np.minimum(((scores - low) * (_INTERVALS / ((high - low) or 1.0))).astype(np.intp), _INTERVALS - 1)
    counts = (np.bincount(places[part], minlength=_INTERVALS) for part in (kept, ~kept))
    return ScoreRow(group.name, low, high, *(tuple(count.tolist()) for count in counts))


_TOP_GROUPS = 15


def graph_as_dict(graph: ChannelGraph) -> dict[str, Any]:
    """The groups, pins and opaque calls of a channel graph as JSON data; ``prunable`` holds fractions."""
    return {
        "prunable": {"macs": _prunable(graph, graph.macs), "params": _prunable(graph, graph.params)},
        "groups": [
            {"name": group.name, "size": group.size, "members": [f"{m.tensor} dim {m.dim}" for m in group.members]}
            for group in graph.groups
        ],
        "pinned": [
            {"name": f"{pin.tensor} dim {pin.dim}", "width": pin.size, "reason": pin.reason, "where": pin.cause}
            for pin in graph.pinned
        ],
        "opaque": [{"name": op.op, "reason": op.reason, "where": op.source} for op in graph.opaque],
    }


def render_graph(graph: ChannelGraph, *, verbose: bool = False) -> RenderableType:
    """The summary as a rich renderable; ``verbose`` shows every group, member and pin."""
    data = graph_as_dict(graph)
    prunable, groups = data["prunable"], data["groups"]
    title = f"{len(groups)} channel groups, {len(data['pinned'])} pinned widths"
    share = f"{percent(prunable['macs'])} of MACs * and {percent(prunable['params'])} of parameters lie in the groups"
    parts: list[RenderableType] = [Text(title, style="bold"), Text(share), Text(f"* {MACS_MEANING}", style="dim")]
    parts += [Text(""), _groups(groups, verbose)]
    for name, width in (("pinned", "pinned width"), ("opaque", "opaque call")):
        names = (f"{row['name']} ({row['width']})" if "width" in row else row["name"] for row in data[name])
        rows = [(shown, row["reason"], row["where"]) for shown, row in zip(names, data[name], strict=True)]
        parts += [Text(""), listing(width, rows, verbose)] if rows else []
    return Stack(*parts)


def _groups(groups: list[dict[str, Any]], verbose: bool) -> RenderableType:
    shown = groups if verbose else groups[:_TOP_GROUPS]
    table = new_table("group", ["channels"], last="members")
    for group in shown:
        members = group["members"]
        add_row(table, group["name"], str(group["size"]), "\n".join(members) if verbose else str(len(members)))
    return with_rest(table, len(groups) - len(shown), "groups")


def _prunable(graph: ChannelGraph, terms: Iterable[Term]) -> float:
    """The fraction (0 to 1) of a cost that depends on the size of some group."""
    in_groups = {group.variable for group in graph.groups}
    total = prunable = 0.0
    for term in terms:
        cost = term.coefficient * math.prod(axis.size for axis in term.axes)
        total += cost
        if any(variable in in_groups for axis in term.axes for variable in variables(axis)):
            prunable += cost
    return prunable / total if total else 0.0
