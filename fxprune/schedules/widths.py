"""How wide fused layers become: rates by hand, a ratio, or another plan's widths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.utils import parametrize

from fxprune.analysis import ChannelGraph
from fxprune.errors import OptionError
from fxprune.groups import Group
from fxprune.planning import Plan
from fxprune.schedules.fused_layers import FusedGroup

__all__ = ["fused_groups", "why_not", "widths_of_plan", "widths_of_rates"]


def widths_of_rates(graph: ChannelGraph, rates: Mapping[str, float]) -> dict[Group, int]:
    """Kept widths from the share of filters that goes, by pattern of the layers' paths; rounded down, as DCFF does.

    Raises:
        OptionError: a pattern that matches no layer, a share that is none, or two shares for one group.
    """
    found: dict[Group, float] = {}
    for pattern, rate in rates.items():
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
            raise OptionError(f"the rate of {pattern!r} must be a number with 0 <= rate < 1, not {rate!r}")
        groups = [group for group in graph.groups if any(fnmatchcase(path, pattern) for path in _layers(group))]
        if not groups:
            known = ", ".join(path for group in graph.groups for path in _layers(group)[:1])
            raise OptionError(f"no layer with prunable channels is called {pattern!r}: there are {known}")
        for group in groups:
            if found.setdefault(group, float(rate)) != rate:
                raise OptionError(
                    f"{group.name} is given the rates {found[group]:g} and {rate:g}: its layers are coupled"
                )
    # The small addend: 10 * (1 - 0.9) is 0.9999999999999998.
    return {group: max(1, math.floor(group.size * (1 - rate) + 1e-9)) for group, rate in found.items()}


def widths_of_plan(graph: ChannelGraph, plan: Plan) -> dict[Group, int]:
    """Kept widths of a plan for the same network.

    Raises:
        PlanError: it is for another network.
    """
    masks = plan.masks(graph)
    return {group: int(masks[group.variable].sum()) for group in graph.groups}


def why_not(group: Group, graph: ChannelGraph, model: nn.Module) -> str:
    """Why the filters of a group cannot be fused; empty where they can."""
    kernels = [m for m in group.members if m.role == "out" and len(graph.shapes[m.tensor]) > 1]
    called = {str(n.target) for c in graph.captured.everything() for n in c.graph.nodes if n.op == "call_module"}
    if not kernels:
        return "no layer's filters make its channels"
    for member in kernels:
        path = member.tensor.rpartition(".")[0]
        if member.dim != 0 or member.axis is not group.variable:
            return f"the rows of {member.tensor} are not its channels one by one"
        if path not in called or parametrize.is_parametrized(model.get_submodule(path)):
            return f"{member.tensor} is not the weight of a layer that the network calls"
        if member.tensor not in dict(model.named_parameters()):
            return f"{member.tensor} is no parameter of its own"
    return ""


def fused_groups(graph: ChannelGraph, model: nn.Module, widths: Mapping[Group, int]) -> list[FusedGroup]:
    """The groups that become narrower, with the parameters that are fused.

    Raises:
        OptionError: one cannot be fused, or none becomes narrower.
    """
    found = []
    for group, width in widths.items():
        if width >= group.size:
            continue
        reason = why_not(group, graph, model)
        if reason:
            raise OptionError(f"the filters of {group.name} cannot be fused: {reason}; leave this group whole")
        kernels = tuple(m.tensor for m in group.members if m.role == "out" and len(graph.shapes[m.tensor]) > 1)
        own = {name.rpartition(".")[0] + ".bias" for name in kernels}
        biases = tuple(m.tensor for m in group.members if m.tensor in own)
        found.append(FusedGroup(group.name, kernels, biases, width))
    if not found:
        raise OptionError("no layer would become narrower: give a rate or a ratio above 0")
    return found


def _layers(group: Group) -> list[str]:
    """The paths of the layers that make a group's channels."""
    return [m.tensor.rpartition(".")[0] for m in group.members if m.role == "out"]
