"""What an analysis found: channel groups, pinned widths, opaque calls and how much of the network can shrink."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fxprune.axes.expressions import variables
from fxprune.groups import Term

if TYPE_CHECKING:
    from fxprune.analysis import ChannelGraph

__all__ = ["graph_as_dict", "prunable_share"]


def graph_as_dict(graph: ChannelGraph) -> dict[str, Any]:
    """The groups, pins and opaque calls of a channel graph as JSON data."""
    return {
        "prunable": {"macs": prunable_share(graph.macs), "params": prunable_share(graph.params)},
        "groups": [
            {"name": group.name, "size": group.size, "members": [f"{m.tensor}[{m.dim}]" for m in group.members]}
            for group in graph.groups
        ],
        "pinned": [
            {"name": f"{pin.tensor}[{pin.dim}]", "width": pin.size, "reason": pin.reason, "where": pin.cause}
            for pin in graph.pinned
        ],
        "opaque": [{"name": op.op, "reason": op.reason, "where": op.source} for op in graph.opaque],
    }


def prunable_share(terms: Iterable[Term]) -> float:
    """The fraction of a cost that depends on the size of some group, between 0 and 1."""
    total = prunable = 0.0
    for term in terms:
        cost = term.coefficient * math.prod(axis.size for axis in term.axes)
        total += cost
        prunable += cost if any(True for axis in term.axes for _ in variables(axis)) else 0.0
    return prunable / total if total else 0.0
