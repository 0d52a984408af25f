"""What an analysis found: channel groups, pinned widths, opaque calls and how much of the network can shrink."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.text import Text

from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.expressions import Term, variables
from fxprune.reporting.report import MACS_MEANING
from fxprune.util.tables import add_row, listing, new_table, percent, with_rest

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
    """The summary as something that a rich console prints; ``verbose`` shows every group, member and pin."""
    data = graph_as_dict(graph)
    prunable, groups = data["prunable"], data["groups"]
    title = f"{len(groups)} channel groups, {len(data['pinned'])} pinned widths"
    share = f"{percent(prunable['macs'])} of MACs * and {percent(prunable['params'])} of parameters lie in the groups"
    parts: list[RenderableType] = [Text(title, style="bold"), Text(share), Text(f"* {MACS_MEANING}", style="dim")]
    parts += [Text(""), _groups(groups, verbose)]
    for name, width in (("pinned", "pinned width"), ("opaque", "opaque call")):
        rows = [(_with_width(row), row["reason"], row["where"]) for row in data[name]]
        parts += [Text(""), listing(width, rows, verbose)] if rows else []
    return Stack(*parts)


def _groups(groups: list[dict[str, Any]], verbose: bool) -> RenderableType:
    shown = groups if verbose else groups[:_TOP_GROUPS]
    table = new_table("group", ["channels"], last="members")
    for group in shown:
        members = group["members"]
        add_row(table, group["name"], str(group["size"]), "\n".join(members) if verbose else str(len(members)))
    return with_rest(table, len(groups) - len(shown), "groups")


def _with_width(row: dict[str, Any]) -> str:
    return f"{row['name']} ({row['width']})" if "width" in row else str(row["name"])


def _prunable(graph: ChannelGraph, terms: Iterable[Term]) -> float:
    """The fraction of a cost that depends on the size of some group, between 0 and 1."""
    in_groups = {group.variable for group in graph.groups}
    total = prunable = 0.0
    for term in terms:
        cost = term.coefficient * math.prod(axis.size for axis in term.axes)
        total += cost
        if any(variable in in_groups for axis in term.axes for variable in variables(axis)):
            prunable += cost
    return prunable / total if total else 0.0
