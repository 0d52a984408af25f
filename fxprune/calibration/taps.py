"""Where a group's feature maps are read: one rule, with variants.

- If several activations of a group are combined (the sum of a residual stream, a gate, the products of attention), the
  group is read at the output of every such op.
- Any other group is read at the output of each op that produces its channels, after the norm that follows directly and
  before the activation. A concatenation changes no value, so reading before it equals reading after it.

The variants move these places: "activated" to the output of the activation function that follows directly, "pooled"
further to that of a max-pool if nothing else reads the activations, "producer" back to the direct outputs of the ops
that produce the channels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import fx

from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.expressions import Axis, variables
from fxprune.calibration.collecting import Observation
from fxprune.calibration.statistic import Parameter, Statistic, Tap, channel_tap
from fxprune.capture import Captured
from fxprune.errors import CriterionError, check_choice
from fxprune.rules.call import Call, parameter_name, parameter_names
from fxprune.rules.ops import ACTIVATIONS, MAX_POOLS, NORMS

TAP_RULES = ("normalised", "activated", "pooled", "producer")
_ACTIVATIONS = ACTIVATIONS | {"clamp", "clamp_min"}


def check_tap_rule(rule: str) -> None:
    """Refuse an unknown tap rule. Raises CriterionError: it is not in :data:`TAP_RULES`."""
    check_choice(CriterionError, "tap", rule, TAP_RULES)


class TapFinder:
    """Finds the taps of groups in the captured graphs (that of eval mode, and those inside opaque modules)."""

    def __init__(self, graph: ChannelGraph) -> None:
        self._graph = graph
        self._axes: dict[fx.Node, tuple[Axis, ...]] = {}
        self._batch: dict[fx.Node, int | None] = {}
        self._holders: Mapping[int, list[fx.Node]] = defaultdict(list)
        self._makers: Mapping[str, list[fx.Node]] = defaultdict(list)
        self._shared: dict[tuple[str, Callable[..., Statistic]], Observation] = {}
        for captured in (graph.captured, *graph.captured.islands):
            self._visit(captured)

    def taps(self, group: Group, rule: str = "normalised") -> list[Tap]:
        """The taps of a group by a rule of :data:`TAP_RULES`; none if no activation holds its channels separately."""
        check_tap_rule(rule)
        nodes = self._meeting(group) if rule != "producer" else []
        if not nodes:
            nodes = self._producers(group) or self._holders[group.variable.serial][:1]
            if rule != "producer":
                nodes = [self._followed(node, group, NORMS) for node in nodes]
        if rule in ("activated", "pooled"):
            nodes = [self._followed(node, group, _ACTIVATIONS) for node in nodes]
        if rule == "pooled":
            nodes = [self._followed(node, group, MAX_POOLS) if len(node.users) == 1 else node for node in nodes]
        found = self._readable(nodes, group)
        # If the places of the rule are not readable channel by channel, use the first one that is.
        return found or self._readable(self._holders[group.variable.serial], group)[:1]

    def consumers(self, group: Group) -> list[tuple[Call, Tap, str]]:
        """Ops with weights that read a group: the call, the tap at its input, and the name of its weight."""
        found = []
        wanted = {m.tensor for m in group.members if m.role == "in"}
        for name in sorted(wanted):
            for node in self._makers[name]:
                call = self._graph.calls[node]
                source = call.arguments.get("input")
                if parameter_name(call.arguments.get("weight")) == name and isinstance(source, fx.Node):
                    taps = self._readable([source], group)
                    found += [(call, tap, name) for tap in taps]
        return found

    def readings(self, group: Group) -> list[Tap]:
        """The places where ops read a group's channels without passing them on. A channel zero at all has no effect."""
        pairs = self.readers(group)
        return [replace(tap, reader=reader) for node, reader in pairs for tap in self._readable([node], group)]

    def readers(self, group: Group) -> list[tuple[fx.Node, fx.Node]]:
        """Every node that holds a group, paired with each op that reads its channels and does not pass them on."""
        holders = self._holders[group.variable.serial]
        return [(node, user) for node in holders for user in node.users if not self._passes(user, group)]

    def parameters(self, group: Group, make: Callable[[tuple[int, ...]], Statistic]) -> dict[str, Observation]:
        """An observation of every parameter, by name; ``make`` makes the statistic of a shape. Groups share one."""
        known = self._graph.captured.parameters
        for name in (m.tensor for m in group.members if m.tensor in known):
            if (name, make) not in self._shared:
                self._shared[name, make] = Observation(Parameter(name), make(self._graph.shapes[name]))
        return {m.tensor: self._shared[m.tensor, make] for m in group.members if m.tensor in known}

    @property
    def calls(self) -> Mapping[fx.Node, Call]:
        """Every call of the captured graphs."""
        return self._graph.calls

    def start(self) -> TapFinder:
        """The finder for another pass over the data: earlier observations are not returned again."""
        self._shared = {}
        return self

    def raw(self, node: fx.Node) -> Tap:
        """A raw tap: it passes on the node's whole tensor."""
        return Tap(node)

    def _visit(self, captured: Captured) -> None:
        """Note which nodes depend on the input and hold which variables, and which ops read which parameters."""
        dependent: set[fx.Node] = set()
        for node in captured.graph.nodes:
            if node.op != "placeholder" and not dependent.intersection(node.all_input_nodes):
                continue
            dependent.add(node)
            call = self._graph.calls.get(node)
            for name in parameter_names(call) if call is not None else ():
                self._makers[captured.first_name(name)].append(node)
            value = node.meta.get("val")
            axes = self._graph.axes.get(node)
            readable = isinstance(value, torch.Tensor) and value.is_floating_point()
            if readable and isinstance(axes, tuple) and call is not None:
                self._hold(node, tuple(map(self._graph.solver.resolve, axes)), captured.sample.batch_size)

    def _hold(self, node: fx.Node, axes: tuple[Axis, ...], batch: int | None) -> None:
        self._axes[node] = axes
        self._batch[node] = batch
        for serial in {v.serial for axis in axes for v in variables(axis)}:
            self._holders[serial].append(node)

    def _holds(self, node: fx.Node, group: Group) -> bool:
        return any(v is group.variable for axis in self._axes.get(node, ()) for v in variables(axis))

    def _passes(self, node: fx.Node, group: Group) -> bool:
        """Whether an op's output holds the group, or is a shape or list that is unread or passes it on."""
        if isinstance(node.meta.get("val"), torch.Tensor):
            return self._holds(node, group)
        return not node.users or any(self._passes(user, group) for user in node.users)

    def _meeting(self, group: Group) -> list[fx.Node]:
        return [
            node
            for node in self._holders[group.variable.serial]
            if sum(self._holds(argument, group) for argument in node.all_input_nodes) >= 2
        ]

    def _producers(self, group: Group) -> list[fx.Node]:
        made = {m.tensor for m in group.members if m.role == "out"}
        makers = {node for name in made for node in self._makers[name]}
        return [node for node in self._holders[group.variable.serial] if node in makers]

    def _followed(self, node: fx.Node, group: Group, names: frozenset[str]) -> fx.Node:
        """The user of a node that applies one of these ops to the group, or the node itself if there is none."""
        for user in node.users:
            call = self._graph.calls.get(user)
            if call is not None and call.name in names and self._holds(user, group):
                return user
        return node

    def _readable(self, nodes: Iterable[fx.Node], group: Group) -> list[Tap]:
        found = (
            channel_tap(n, self._axes[n], group.variable, self._batch[n])
            for n in dict.fromkeys(nodes)
            if n in self._axes
        )
        return [tap for tap in found if tap is not None]
