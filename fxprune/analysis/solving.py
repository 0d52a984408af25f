"""The driver: walk a captured graph with the rules, solve the axes, and read off the channel groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import torch
from torch import fx, nn

from fxprune.analysis.drawing import as_svg, draw_network
from fxprune.analysis.explaining import Explainer
from fxprune.analysis.groups import Group, Member, PinnedWidth, channel_graph, position, with_unique_names
from fxprune.analysis.listing import network_text
from fxprune.axes.elements import Mask, has_gather, units_of
from fxprune.axes.expressions import Axis, Channels, Fixed, IndexArray, Origin, Term, variables
from fxprune.axes.solver import Cause, Solver
from fxprune.capture import Captured
from fxprune.capture.decisions import is_check
from fxprune.capture.tracing import OpaqueOp
from fxprune.errors import AnalysisError
from fxprune.rules.call import Call, Ledger, TensorName, fixed_axes
from fxprune.rules.ops import canonical_name
from fxprune.rules.registry import ModuleForm, Rule, bind, find_module_form, find_rule
from fxprune.util.paths import ModelPaths


@dataclass
class Analyzer:
    """Axes of every node and tensor of the captured graphs of one model: eval, and training where it differs."""

    captured: Captured
    model: nn.Module
    solver: Solver = field(default_factory=Solver)
    ledger: Ledger = field(default_factory=Ledger)
    tensors: dict[str, tuple[Axis, ...]] = field(default_factory=dict)
    axes: dict[fx.Node, Any] = field(default_factory=dict)
    calls: dict[fx.Node, Call] = field(default_factory=dict)
    opaque: list[OpaqueOp] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    macs: list[tuple[fx.Node, float, tuple[Axis, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.paths = ModelPaths(self.model)
        self._part = ""

    def run(self) -> None:
        """Visit every node in order."""
        captures = list(self.captured.everything())
        for name, shape in ((n, s) for c in captures for n, s in c.shapes.items()):
            if self.captured.first_name(name) not in self.tensors:
                self.tensors[name] = tuple(self.solver.fresh(s, Origin(name, d)) for d, s in enumerate(shape))
        for captured in captures:
            self.ledger.macs = []
            self._part = captured.prefix.removesuffix(".")
            for node in captured.graph.nodes:
                self.ledger.follow(node)
                self.axes[node] = self._visit(node)
            if not (captured.training or captured.variant):
                self.macs.extend((n, c * captured.calls, axes) for n, c, axes in self.ledger.macs)
        for path, reason in self.captured.opaque.items():
            self._note_opaque(path, reason)

    def _note_opaque(self, path: str, reason: str) -> None:
        islands = (i.prefix.removesuffix(".") for i in self.captured.islands)
        inside = [island for island in islands if island.startswith(f"{path}.".lstrip("."))]
        pruned = f"; pruned inside it: {', '.join(inside)}" if inside else ""
        traced = tuple(f"{island}." for island in inside)
        self._pin_opaque_tensors(path, traced)
        own = self.model.get_submodule(path).named_parameters(prefix=path)
        size = sum(parameter.numel() for name, parameter in own if not name.startswith(traced))
        macs = self.captured.opaque_macs.get(path, 0.0)
        self.opaque.append(OpaqueOp("", path or "the model's own forward", "", f"{reason}{pruned}", macs, size))

    def _pin_opaque_tensors(self, path: str, traced: tuple[str, ...]) -> None:
        """What an opaque module holds outside of its traced parts, under whatever name, is read at full width."""
        inside = f"{path}.".lstrip(".")
        reason = f"{path or 'the model'} uses it outside of the parts that are traced"
        for name in (*self.captured.shapes, *self.captured.aliases):
            if name.startswith(inside) and not name.startswith(traced) and name not in self.captured.constants:
                self.solver_pin(self.tensors[self.captured.first_name(name)], reason, Cause("", path))

    def _visit(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return fixed_axes(node.meta["val"], self._border("input"))
        if node.op == "get_attr":
            return self._tensor(str(node.target))
        if node.op == "output":
            self._pin_arguments(node, self._border("output"))
            return None
        if is_check(node):
            return None
        value = node.meta["val"]
        if not _holds_tensor(value) and canonical_name(node.target) != "setitem":
            if value is None:
                self._pin_arguments(node, self._border("output"))
            return None
        return self._apply_rule(node)

    def _border(self, side: str) -> str:
        whose = f"the {side} of {self._part}, which an opaque module calls" if self._part else f"the network's {side}"
        return f"it is a dim of {whose}"

    def _apply_rule(self, node: fx.Node) -> Any:
        call, rule = self._call(node)
        if rule is None:
            return self._refuse(call, "there is no rule for it")
        try:
            rule.axes(call)
            _check_sizes(call)
        except (AnalysisError, LookupError, TypeError, ValueError, AttributeError, StopIteration) as error:
            return self._refuse(call, f"this use of it is not understood ({type(error).__name__}: {error})")
        self.calls[node] = call
        return call.result

    def _call(self, node: fx.Node) -> tuple[Call, Rule | None]:
        name, arguments, rule = self._bound(node)
        cause = Cause(node.name, _op_in_words(node, name), node.meta.get("source", ""))
        read = (self._axes_of, self._shape_of, self.ledger, self._attribute_of)
        call = Call(node, name, arguments, self.solver, cause, *read)
        return call, rule

    def _bound(self, node: fx.Node) -> tuple[str, dict[str, Any], Rule | None]:
        if node.op == "call_module":
            module = self.paths.module(str(node.target))
            form = find_module_form(module)
            if form is None or str(node.target) in self.captured.opaque:
                return str(node.target), {}, None
            rule = find_rule(form.rule)
            assert rule is not None, form.rule
            return form.rule, bind(rule.signature, node.args, node.kwargs) | self._module_arguments(node, form), rule
        name, args = canonical_name(node.target), node.args
        if node.target is getattr:
            name, args = canonical_name(str(args[1])), args[:1]
        rule = find_rule(name)
        return name, bind(rule.signature, args, node.kwargs) if rule else {}, rule

    def _module_arguments(self, node: fx.Node, form: ModuleForm) -> dict[str, Any]:
        module = self.paths.module(str(node.target))
        arguments = form.arguments(module)
        for name, value in arguments.items():
            if isinstance(value, str) and value.startswith("."):
                full = f"{node.target}{value}"
                arguments[name] = TensorName(self.captured.first_name(full))
        return arguments

    # -- what calls read ------------------------------------------------------------------------------------------

    def _tensor(self, name: str) -> tuple[Axis, ...]:
        first = self.captured.first_name(name)
        self.used.add(first)
        return self.tensors[first]

    def _attribute_of(self, name: str) -> torch.Tensor:
        captures = self.captured.everything()
        constant = next((c.constants[name] for c in captures if name in c.constants), None)
        value = self.paths.attribute(name) if constant is None else constant
        assert isinstance(value, torch.Tensor)
        return value

    def _axes_of(self, value: Any) -> Any:
        if isinstance(value, TensorName):
            self.used.add(value.name)
            return self.tensors[value.name]
        if isinstance(value, fx.Node):
            return self.axes[value]
        if isinstance(value, (int, float, bool)):
            return ()
        raise AnalysisError(f"an argument of type {type(value).__name__} is no tensor")

    def _shape_of(self, value: Any) -> tuple[int, ...]:
        return tuple(a.size for a in self._axes_of(value))

    # -- refusing -------------------------------------------------------------------------------------------------

    def _refuse(self, call: Call, reason: str) -> Any:
        if call.node.target in self.captured.opaque:
            reason = "it is opaque"
        else:
            self.opaque.append(OpaqueOp(call.node.name, call.cause.op, call.cause.source, reason))
        self._pin_arguments(call.node, f"{call.cause.op}: {reason}")
        for value in call.arguments.values():
            if isinstance(value, TensorName):
                self.solver_pin(self.tensors[value.name], f"{call.cause.op}: {reason}", call.cause)
        return fixed_axes(call.value, f"{call.cause.op}: {reason}")

    def _pin_arguments(self, node: fx.Node, reason: str) -> None:
        cause = Cause(node.name, _op_in_words(node, str(node.op)), node.meta.get("source", ""))
        for argument in node.all_input_nodes:
            self.solver_pin(_flat(self.axes[argument]), reason, cause)

    def solver_pin(self, axes: Iterable[Axis], reason: str, cause: Cause) -> None:
        """Pin several axes."""
        for axis in axes:
            self.solver.pin(axis, reason, cause)


class ChannelGraph:
    """The solved network: groups that may shrink, widths that may not, and what they cost.

    Attributes:
        groups: the groups from which channels may be removed, in the order of the network.
        pinned: widths of parameters that stay, with reasons.
        macs, params: cost terms over resolved axes; MACs are for the sample as given, constant in opaque modules.
        parameter_names: the first state-dict name of every parameter.
        tensors: resolved axes of every parameter, buffer and traced constant, by first state-dict name.
        graph: the networkx graph whose connected components are the groups.
        opaque: ops that were not understood.
        activations: the distinct axes of activations that gather elements of others, so that they might lose all
            elements while every group keeps some; none may.
        pairs: axes that must keep two elements, because an op does something else with one.
        constants: tensors made while tracing, by name.
        mac_terms: by node the terms of ``macs`` that are its own.
        measured: cost models that need a run of the network, by the name of their budget; empty before it.
        batch_scale: the batch of the user's sample as a fraction of the batch that was traced.
        bytes: of an element of each parameter.
        captured: what was captured.
    """

    def __init__(self, analyzer: Analyzer, batch_scale: float) -> None:
        self.captured = analyzer.captured
        self.solver = analyzer.solver
        self.calls = analyzer.calls
        self.axes = analyzer.axes
        self.opaque = tuple(analyzer.opaque)
        self.shapes: Mapping[str, tuple[int, ...]] = {n: tuple(a.size for a in t) for n, t in analyzer.tensors.items()}
        self._selections = {n: f"inputs of {p}" for c in self.captured.everything() for n, p in c.selections.items()}
        self.constants = {n: t for c in self.captured.everything() for n, t in c.constants.items()}
        resolve = self.solver.resolve
        self.tensors: Mapping[str, tuple[Axis, ...]] = {
            n: tuple(resolve(a) for a in axes) for n, axes in analyzer.tensors.items()
        }
        places = {
            a: (n, d) for n, axes in analyzer.tensors.items() for d, a in enumerate(axes) if isinstance(a, Channels)
        }
        self.graph: nx.Graph = channel_graph(self.solver, (a for a, (n, _) in places.items() if n in analyzer.used))
        self._variables = {a.serial: place for a, place in places.items()}
        shown = {serial: (self._selections.get(n, n), d) for serial, (n, d) in self._variables.items()}
        self._explainer = Explainer(self.graph, analyzer.tensors, shown, self.captured.first_name)
        self.activations = self._activation_axes()
        self.pairs = tuple(dict.fromkeys(map(resolve, analyzer.ledger.pairs)))
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
        self.measured: dict[str, Any] = {}
        self.parameter_names = frozenset(term.owner for term in self.params)
        self.batch_scale = batch_scale
        self.bytes: Mapping[str, int] = {
            name: parameter.element_size() for name, parameter in analyzer.model.named_parameters()
        }

    def __repr__(self) -> str:
        groups, pinned = len(self.groups), len(self.pinned)
        nodes = sum(len(part.graph.nodes) for part in self.captured.everything())
        return f"<ChannelGraph: {nodes} nodes, {groups} channel groups, {pinned} pinned widths>"

    def __str__(self) -> str:
        return self.listing()

    def listing(self, masks: Mapping[Channels, Mask] | None = None) -> str:
        """Every node with its axes, groups and source line; with the kept units of each group, old and new widths."""
        return network_text(self, masks)

    def units(self, group: Group, tensor: str, dim: int) -> IndexArray:
        """For each index of a tensor's dim the unit of the group it belongs to, or -1."""
        return units_of(self.tensors[tensor][dim], group.variable)

    def explain(self, first: str, second: str | None = None) -> str:
        """Why two tensors' channels are tied, or (with one name) why a width is pinned. Names are state-dict names."""
        return self._explainer.explain(first, second)

    def draw(self, fmt: str = "dot") -> str:
        """A picture with one colour a group.

        Args:
            fmt: "dot" gives the channel graph (every width, and what ties it) as DOT text, pinned parts as boxes; "svg"
                the network's operations in order as SVG text, those with pinned widths marked.

        Raises:
            AnalysisError: another format.
        """
        return as_svg(draw_network(self)) if fmt == "svg" else self._explainer.draw(fmt)

    def crosses_norm(self, variable_set: Iterable[Channels]) -> bool:
        """Whether any of these groups' variables runs through a norm, softmax, reduction or product of activations."""
        wanted = {v.serial for v in variable_set}
        return any(g.crosses_norm and g.variable.serial in wanted for g in self.groups)

    # -- construction -----------------------------------------------------------------------------------------------

    def _solve_groups(self, ledger: Ledger) -> tuple[Group, ...]:
        crossed = self._roots(c.axis for c in ledger.crossings)
        joined = self._roots(ledger.joins)
        found: dict[int, list[Member]] = {}
        for component in nx.connected_components(self.graph):
            root = next(iter(component))[1]
            places = sorted(self._variables[serial] for serial, _ in component if serial in self._variables)
            if root is None or not places:
                continue
            found.setdefault(root, []).extend(
                Member(t, d, ledger.roles.get((t, d), "other"), self.tensors[t][d]) for t, d in places
            )
        order = {name: i for i, name in enumerate(self.shapes)}
        groups = [self._group(root, members, order, crossed, joined) for root, members in found.items()]
        groups.sort(key=lambda g: (order[g.members[0].tensor], g.members[0].dim, position(g)))
        return tuple(with_unique_names(groups))

    def _group(
        self, root: int, members: list[Member], order: Mapping[str, int], crossed: set[int], joined: set[int]
    ) -> Group:
        members.sort(key=lambda m: (m.role not in ("out", "selection"), order[m.tensor], m.dim))
        first = members[0]
        variable = next(v for v in variables(first.axis) if v.serial == root)
        name = self._selections.get(first.tensor, first.tensor.removesuffix(".weight"))
        return Group(name, variable, variable.size, tuple(members), root in crossed, root in joined)

    def _activation_axes(self) -> tuple[Axis, ...]:
        found: dict[int, Axis] = {}
        for node, axes in self.axes.items():
            if isinstance(node.meta.get("val"), torch.Tensor):
                found.update((id(r), r) for r in map(self.solver.resolve, axes) if r.size and has_gather(r))
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
    captured: Captured,
    model: nn.Module,
    given_batch: int | None,
    untraced: tuple[OpaqueOp, ...] = (),
) -> ChannelGraph:
    """Solve the axes of a captured model.

    ``given_batch``: the batch of the user's sample, for which MACs are counted. ``untraced``: what capture left out.
    """
    analyzer = Analyzer(captured, model, opaque=list(untraced))
    analyzer.run()
    traced = captured.sample.batch_size
    scale = 1.0 if given_batch is None or traced is None else given_batch / traced
    return ChannelGraph(analyzer, scale)


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return True
    if isinstance(value, (list, tuple)):
        return any(_holds_tensor(v) for v in value)
    return isinstance(value, dict) and any(_holds_tensor(v) for v in value.values())


def _flat(axes: Any) -> list[Axis]:
    if axes is None:
        return []
    if isinstance(axes, (list, tuple)):
        return [a for item in axes for a in _flat(item)]
    if isinstance(axes, dict):
        return [a for item in axes.values() for a in _flat(item)]
    return [axes]


def _check_sizes(call: Call) -> None:
    if isinstance(call.value, torch.Tensor):
        sizes = None if call.result is None else tuple(a.size for a in call.result)
        if sizes != tuple(call.value.shape):
            raise AnalysisError(f"axes of sizes {sizes} for a tensor of shape {tuple(call.value.shape)}")
    elif isinstance(call.value, (list, tuple)) and call.result is not None:
        for axes, value in zip(call.result, call.value, strict=True):
            if isinstance(value, torch.Tensor) and tuple(a.size for a in axes) != tuple(value.shape):
                raise AnalysisError(f"wrong axes for a tensor of shape {tuple(value.shape)}")


def _op_in_words(node: fx.Node, name: str) -> str:
    if node.op == "call_module":
        return str(node.target)
    path = node.meta.get("module", "")
    return f"{name} in {path}" if path else name


def owner_of(node: fx.Node) -> str:
    """The layer that a node belongs to, or its own name."""
    return str(node.target) if node.op == "call_module" else node.meta.get("module") or node.name
