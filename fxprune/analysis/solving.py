"""The solved network: the channel groups, found from the axes of its nodes, and their costs."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from fxprune.analysis.analyzer import Analyzer, flat_axes
from fxprune.analysis.drawing import as_svg, draw_network
from fxprune.analysis.groups import Group, Member, PinnedWidth, channel_graph, position, with_unique_names
from fxprune.analysis.listing import Explainer, network_text
from fxprune.axes.elements import Mask, channels_of, has_gather
from fxprune.axes.expressions import Axis, Channels, Fixed, IndexArray, Term, variables
from fxprune.capture import Captured
from fxprune.capture.tracing import OpaqueOp
from fxprune.rules.call import Ledger
from fxprune.util.paths import named_parameters

if TYPE_CHECKING:
    import networkx as nx


class ChannelGraph:
    """The solved network: groups that may shrink, widths that may not, and their costs.

    Attributes:
        groups: the groups from which channels may be removed, in the order of the network.
        pinned: widths of parameters that stay, with reasons.
        macs, params: cost terms over resolved axes. MACs are for the given sample, and constant for opaque modules.
        parameter_names: the first state-dict name of every parameter.
        tensors: resolved axes of every parameter, buffer and traced constant, by first state-dict name.
        opaque: ops that were not understood.
        activations: the distinct axes of activations that gather elements of other axes. Such an axis could lose all
            its elements while every group keeps some; a plan must leave each at least one.
        fewest: axes with the least number of elements they must keep: an op fails or changes its meaning with fewer.
        numbered: axes whose elements other tensors refer to by number, such as the experts that a router chose.
        constants: tensors made while tracing, by name.
        mac_terms: the terms of ``macs`` by node.
        cost_models: the cost models that were asked for or measured, by the name of their budget.
        batch_scale: the batch of the user's sample as a fraction of the batch that was traced.
        bytes: the bytes of one element of each parameter, by name.
        captured: the captured graphs.
        first_names: the name of every tensor in ``shapes``, by each name that it has.
    """

    def __init__(self, analyzer: Analyzer, batch_scale: float) -> None:
        self.captured = analyzer.captured
        self.solver = analyzer.solver
        self.calls = analyzer.calls
        self.axes = analyzer.axes
        self.opaque = tuple(analyzer.opaque)
        self.shapes: Mapping[str, tuple[int, ...]] = {n: tuple(a.size for a in t) for n, t in analyzer.tensors.items()}
        self.first_names = {**{name: name for name in self.shapes}, **self.captured.aliases}
        self._selections = {n: f"inputs of {p}" for c in self.captured.everything() for n, p in c.selections.items()}
        self.constants = {n: t for c in self.captured.everything() for n, t in c.constants.items()}
        resolve = self.solver.resolve
        self.tensors: Mapping[str, tuple[Axis, ...]] = {
            n: tuple(resolve(a) for a in axes) for n, axes in analyzer.tensors.items()
        }
        places = {
            a: (n, d) for n, axes in analyzer.tensors.items() for d, a in enumerate(axes) if isinstance(a, Channels)
        }
        self._ties = channel_graph(self.solver, (a for a, (n, _) in places.items() if n in analyzer.used))
        self._variables = {a.serial: place for a, place in places.items()}
        shown = {serial: (self._selections.get(n, n), d) for serial, (n, d) in self._variables.items()}
        self._explainer = Explainer(self._ties, analyzer.tensors, shown, self.captured.first_name)
        self.activations = self._activation_axes()
        self.fewest = tuple(dict.fromkeys((resolve(axis), count) for axis, count in analyzer.ledger.fewest))
        self.numbered = tuple(map(resolve, flat_axes([*analyzer.ledger.numbers.values()])))
        self.groups = self._solve_groups(analyzer.ledger)
        self.pinned = self._pinned_widths(analyzer.ledger)
        self.macs = tuple(
            Term(owner_of(node), c * batch_scale, tuple(resolve(a) for a in axes)) for node, c, axes in analyzer.macs
        )
        self.mac_terms: Mapping[fx.Node, list[Term]] = {}
        for (node, _, _), term in zip(analyzer.macs, self.macs, strict=True):
            self.mac_terms.setdefault(node, []).append(term)
        self.macs += tuple(Term(call.op, call.macs, ()) for call in self.opaque if call.macs)
        self.params = tuple(Term(n, 1.0, self.tensors[n]) for n in self.shapes if n in self.captured.parameters)
        self.cost_models: dict[str, Any] = {}
        self.parameter_names = frozenset(term.owner for term in self.params)
        self.batch_scale = batch_scale
        self.bytes: Mapping[str, int] = {
            name: parameter.element_size() for name, parameter in named_parameters(analyzer.model)
        }

    @functools.cached_property
    def graph(self) -> nx.Graph:
        """The networkx graph whose connected components are the groups."""
        return self._ties.as_networkx()

    def __repr__(self) -> str:
        groups, pinned = len(self.groups), len(self.pinned)
        nodes = sum(len(part.graph.nodes) for part in self.captured.everything())
        return f"<ChannelGraph: {nodes} nodes, {groups} channel groups, {pinned} pinned widths>"

    def __str__(self) -> str:
        return self.listing()

    def listing(self, masks: Mapping[Channels, Mask] | None = None) -> str:
        """Every node with its axes, groups and source line; with ``masks`` (the kept channels), old and new widths."""
        return network_text(self, masks)

    def channels(self, group: Group, tensor: str, dim: int) -> IndexArray:
        """The channel of the group that each index of a tensor's dim belongs to, or -1."""
        return channels_of(self.tensors[tensor][dim], group.variable)

    units = channels  # an earlier name

    def explain(self, first: str, second: str | None = None) -> str:
        """Why the channels of two tensors are tied or, with one name, why a width is pinned. Takes state-dict names."""
        return self._explainer.explain(first, second)

    def draw(self, fmt: str = "dot") -> str:
        """The widths and their ties as "dot" text, or the operations as "svg". Raises AnalysisError: unknown format."""
        if fmt != "svg":
            return self._explainer.draw(fmt)
        return as_svg(draw_network(self), {group.name: str(group.size) for group in self.groups})

    def _repr_html_(self) -> str:
        return f'<div style="max-height:32em;overflow:auto">{self.draw("svg")}</div>'

    def crosses_norm(self, variable_set: Iterable[Channels]) -> bool:
        """Whether any of these variables runs through a norm, softmax, reduction or product of activations."""
        wanted = {v.serial for v in variable_set}
        return any(g.crosses_norm and g.variable.serial in wanted for g in self.groups)

    def _solve_groups(self, ledger: Ledger) -> tuple[Group, ...]:
        crossed = self._roots(c.axis for c in ledger.crossings)
        joined = self._roots(ledger.joins)
        selected = self._roots(ledger.selected)
        found: dict[int, list[Member]] = {}
        for component in self._ties.components():
            root = next(iter(component))[1]
            places = sorted(self._variables[serial] for serial, _ in component if serial in self._variables)
            if root is None or not places:
                continue
            found.setdefault(root, []).extend(
                Member(t, d, ledger.roles.get((t, d), "other"), self.tensors[t][d]) for t, d in places
            )
        order = {name: i for i, name in enumerate(self.shapes)}
        groups = [self._group(members, order, root, crossed, joined, selected) for root, members in found.items()]
        groups.sort(key=lambda g: (order[g.members[0].tensor], g.members[0].dim, position(g)))
        return tuple(with_unique_names(groups))

    def _group(self, members: list[Member], order: Mapping[str, int], root: int, *traits: set[int]) -> Group:
        members.sort(key=lambda m: (m.role not in ("out", "selection"), order[m.tensor], m.dim))
        first = members[0]
        variable = next(v for v in variables(first.axis) if v.serial == root)
        name = self._selections.get(first.tensor, first.tensor.removesuffix(".weight"))
        return Group(name, variable, variable.size, tuple(members), *(root in roots for roots in traits))

    def _activation_axes(self) -> tuple[Axis, ...]:
        found: dict[int, Axis] = {}
        for node, axes in self.axes.items():
            if isinstance(node.meta.get("val"), torch.Tensor):
                free = (axis for axis in axes if not isinstance(axis, Fixed))
                found.update((id(r), r) for r in map(self.solver.resolve, free) if r.size and has_gather(r))
        return tuple(found.values())

    def _roots(self, axes: Iterable[Axis]) -> set[int]:
        return {v.serial for axis in axes for v in variables(self.solver.resolve(axis))}

    def _pinned_widths(self, ledger: Ledger) -> tuple[PinnedWidth, ...]:
        pinned = []
        for (tensor, dim), role in ledger.roles.items():
            axis = self.tensors[tensor][dim]
            if isinstance(axis, Fixed) and axis.size > 1 and role in ("out", "in"):
                reason, cause = self._explainer.pin_of(tensor, dim)
                pinned.append(PinnedWidth(tensor, dim, axis.size, reason, cause))
        return tuple(pinned)


def analyze_capture(
    captured: Captured, model: nn.Module, given_batch: int | None, untraced: tuple[OpaqueOp, ...] = ()
) -> ChannelGraph:
    """Solve the axes of a capture; MACs are for ``given_batch``; ``untraced``: the ops that capture left out."""
    analyzer = Analyzer(captured, model, opaque=list(untraced))
    analyzer.run()
    traced = captured.sample.batch_size
    scale = 1.0 if given_batch is None or traced is None else given_batch / traced
    return ChannelGraph(analyzer, scale)


def owner_of(node: fx.Node) -> str:
    """The layer that a node belongs to, or its own name."""
    return str(node.target) if node.op == "call_module" else node.meta.get("module") or node.name
