"""The rewriter: writes every node of the captured graph again, with literals that fit the kept sizes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import Mask, kept_mask
from fxprune.axes.expressions import Axis, Channels, has_fixed
from fxprune.capture import Captured
from fxprune.capture.decisions import is_check
from fxprune.errors import RewriteError
from fxprune.rewriting.choosing import idle_nodes
from fxprune.rewriting.pruned_module import PrunedGraphModule, copy_plain_attributes, graph_name, reorder_like
from fxprune.rewriting.reshapes import insert_reshape_checks
from fxprune.rewriting.slicing import KnownIndices, kept_indices, rebuilt, sliced
from fxprune.rules.call import Call
from fxprune.rules.registry import find_module_form, find_rule, replace
from fxprune.rules.repair import Repair, size_map
from fxprune.util.copies import copy_module, shared_names
from fxprune.util.modes import flags_of
from fxprune.util.paths import ModelPaths, device_of, named_modules, new_node


@dataclass(frozen=True, eq=False)
class Certificate:
    """The rewriter's statement of what it did to one graph. The proof checks it and takes none of it for granted."""

    captured: Captured  # the graph at full width
    narrow: fx.Graph  # the graph that was written for it
    # By node at full width: the node or number that replaces it; None, or no entry, if nothing does.
    images: Mapping[fx.Node, Any]


class Rewriter:
    """Writes captured graphs at the kept widths, over one set of new tensors and modules."""

    def __init__(self, graph: ChannelGraph, model: nn.Module, masks: Mapping[Channels, Mask]) -> None:
        self.graph = fx.Graph()
        self.root: dict[str, Any] = {}
        self.index_constants: list[str] = []
        self.certificates: list[Certificate] = []
        self._source = graph
        self._captured: Captured = graph.captured
        self._selections = {name for c in self._captured.everything() for name in c.selections}
        self._model = model
        self._paths = ModelPaths(model, graph.constants)
        self._masks = masks
        self._kept: KnownIndices = {}
        self._env: dict[fx.Node, Any] = {}
        # By id of the original: its new tensor or, for a traced part of an opaque module, the new part.
        self._tensors: dict[int, Any] = {}
        self._current: fx.Node | None = None
        self._prefix = ""

    def run(self, captured: Captured) -> fx.Graph:
        """Write every node of one graph."""
        self.graph = fx.Graph()
        self._prefix = captured.prefix
        idle = idle_nodes(self._source, captured.graph)
        for node in captured.graph.nodes:
            if node not in idle:
                self._current = node
                self._env[node] = self._write(node)
        self.graph.lint()
        images = {node: self._env[node] for node in captured.graph.nodes if node in self._env}
        self.certificates.append(Certificate(captured, self.graph, images))
        return self.graph

    def assembled(self, captured: Captured) -> PrunedGraphModule:
        """A module over the graphs of one capture, whose prefix is removed from all names."""
        specializations = (captured, *captured.specializations)
        graphs = {
            graph_name(mode.training, mode.specialization): self.run(mode)
            for specialization in specializations
            for mode in specialization.modes()
        }
        cut = len(captured.prefix)
        for node in (n for g in graphs.values() for n in g.nodes if cut and n.op in ("call_module", "get_attr")):
            node.target = str(node.target)[cut:]
        part = self._paths.module(captured.prefix.removesuffix("."))
        root = {name[cut:]: value for name, value in self.root.items() if name.startswith(captured.prefix)}
        new_constants = [n[cut:] for n in self.new_constants if n.startswith(captured.prefix)]
        kept_out = [*new_constants, *_kept_out(part, root)]
        modes = {"effects": captured.effects, "flags": _modes_read(specializations), "untraced": captured.untraced}
        about: dict[str, Any] = {"class_name": type(part).__name__, "kept_out": kept_out, "modes": modes}
        about["shared"] = shared_names(part)
        pruned = PrunedGraphModule(root, graphs, **about, later=True)
        reorder_like(pruned, part)
        pruned.set_modes(flags_of(part))
        return pruned

    def add_island(self, captured: Captured) -> None:
        """Write an island (a traced part of an opaque module); copies of the module will hold it in its place."""
        original = self._paths.module(captured.prefix.removesuffix("."))
        island = self.assembled(captured)
        copy_plain_attributes(original, island)
        self._tensors[id(original)] = island

    def opaque(self, path: str) -> nn.Module:
        """A copy of an opaque module over new tensors, with its islands in place."""
        module = self._paths.module(path)
        self._tensors_of(module, path)
        return copy_module(module, dict(self._tensors))

    @property
    def new_constants(self) -> list[str]:
        """The names of the constants that are not in the original's state dict."""
        return [*self.index_constants, *(n for n in self._source.constants if n in self.root)]

    def _write(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._note(self.graph.create_node("placeholder", str(node.target), node.args))
        if node.op == "output":
            return self.graph.output(self._map(node.args[0]))
        if node.op == "get_attr":
            # The gate of a selection only carries its width; the selection is written without it.
            return None if node.target in self._selections else self._attribute(str(node.target))
        if isinstance(node.meta["val"], (int, float)):
            return self._number(node)
        call = self._source.calls.get(node)
        if is_check(node) and not isinstance(self._mapped(*node.all_input_nodes), fx.Node):
            return None  # its condition became a literal at these widths
        if call is None:
            if node.op == "call_module":
                self.root.setdefault(str(node.target), self.opaque(str(node.target)))
            return self._create(node, self._map(node.args), self._map(node.kwargs))
        return self._repaired(node, call)

    def _repaired(self, node: fx.Node, call: Call) -> fx.Node:
        args, kwargs = self._map(node.args), self._map(node.kwargs)
        arguments = {name: self._map(value) for name, value in call.arguments.items()}
        repair = Repair(call, arguments, self._masks, self.emit, self._add_index, self._mapped)
        rule = find_rule(call.name)
        if rule is not None and rule.repair is not None:
            rule.repair(repair)
        if repair.replacement is not None:
            return repair.replacement
        if node.op == "call_module":
            args = self._module_call(node, repair, args)
        elif repair.changes:
            assert rule is not None
            offset = 1 if node.target is getattr else None
            args, kwargs = replace(rule.signature, args[:offset], kwargs, repair.changes)
        written = self._create(node, args, kwargs)
        return repair.select_kept(written, repair.full_width)

    def _module_call(self, node: fx.Node, repair: Repair, args: tuple[Any, ...]) -> tuple[Any, ...]:
        module = self._paths.module(str(node.target))
        form = find_module_form(module)
        assert form is not None
        attributes: dict[str, Any] = {name: repair.size(axis) for name, axis in repair.call.attributes.items()}
        for name, value in repair.changes.items():
            if name == "input":
                args = (value, *args[1:])
            elif name in form.stored:
                attributes[form.stored[name]] = value
            else:
                raise RewriteError(f"{node.target}: argument {name!r} of {type(module).__name__} cannot be changed")
        self._module(str(node.target), attributes)
        return args

    def _create(self, node: fx.Node, args: Any, kwargs: Any) -> fx.Node:
        return self._note(new_node(self.graph, node.op, node.target, tuple(args), dict(kwargs), node.name))

    def _note(self, written: fx.Node) -> fx.Node:
        if self._current is not None:
            written.meta["source"] = self._current.meta.get("source", "")
        return written

    def emit(self, function: Callable[..., Any] | str, *args: Any) -> fx.Node:
        """Write an extra call of a function, or of a method by its name, before the current node."""
        call = self.graph.call_method if isinstance(function, str) else self.graph.call_function
        return self._note(call(function, args))  # type: ignore[arg-type]

    def _map(self, value: Any) -> Any:
        return fx.node.map_arg(value, self._mapped)

    def _mapped(self, node: fx.Node) -> Any:
        return self._env[node]

    def _number(self, node: fx.Node) -> Any:
        """Write a number with its value at full width: as a literal if it depends on channels alone."""
        if node.op == "call_method" and node.target == "size":
            return self._size(node)
        args = self._map(node.args)
        if not any(isinstance(a, fx.Node) for a in args) and node.target is not torch.is_autocast_enabled:
            return node.meta["val"]
        return self._create(node, args, node.kwargs)

    def _size(self, node: fx.Node) -> Any:
        tensor, dim = node.args
        assert isinstance(tensor, fx.Node)
        assert isinstance(dim, int)
        axis: Axis = self._source.solver.resolve(self._source.axes[tensor][dim])
        kept = int(kept_mask(axis, self._masks).sum())
        if kept != axis.size and not has_fixed(axis):
            return node.meta["val"]
        live = self._create(node, self._map(node.args), {})
        return live if kept == axis.size else size_map(axis, self._masks).full(live, self.emit)

    def _attribute(self, name: str) -> fx.Node:
        if name not in self.root:
            self.root[name] = self._tensor(name)
        return self._note(self.graph.get_attr(name))

    def _tensor(self, name: str) -> torch.Tensor:
        original: torch.Tensor = self._paths.attribute(name)
        if id(original) not in self._tensors:
            axes = self._source.tensors[self._captured.first_name(name)]
            self._tensors[id(original)] = sliced(original, kept_indices(axes, self._masks, self._kept))
        new: torch.Tensor = self._tensors[id(original)]
        return new

    def _tensors_of(self, module: nn.Module, path: str) -> None:
        """Make the new tensors of a module."""
        for where, part in module.named_modules(prefix=path) if module._modules else ((path, module),):
            for name, tensor in (*part._parameters.items(), *part._buffers.items()):
                if tensor is not None:
                    self._tensor(f"{where}.{name}".lstrip("."))

    def _module(self, path: str, attributes: Mapping[str, Any]) -> None:
        if path in self.root:
            return
        module = self._paths.module(path)
        self._tensors_of(module, path)
        self.root[path] = rebuilt(module, self._tensors, attributes)

    def _add_index(self, index: torch.Tensor) -> fx.Node:
        # A network that was pruned before already has index tensors of such names.
        names = (f"{self._prefix}_kept_index{number}" for number in itertools.count(len(self.index_constants)))
        name = next(n for n in names if n not in self._source.shapes and n not in self.root)
        self.index_constants.append(name)
        self.root[name] = index.to(device_of(self._model))
        return self._note(self.graph.get_attr(name))


def rewrite(graph: ChannelGraph, model: nn.Module, masks: Mapping[Channels, Mask]) -> nn.Module:
    """The network at the kept widths over new tensors, in the modes of ``model``; an opaque model keeps its class."""
    return rewrite_certified(graph, model, masks)[0]


def rewrite_certified(
    graph: ChannelGraph, model: nn.Module, masks: Mapping[Channels, Mask]
) -> tuple[nn.Module, tuple[Certificate, ...]]:
    """The network of :func:`rewrite`, and a certificate for each of its graphs."""
    insert_reshape_checks(graph, masks)
    return rewrite_without_checks(graph, model, masks)


def rewrite_without_checks(
    graph: ChannelGraph, model: nn.Module, masks: Mapping[Channels, Mask]
) -> tuple[nn.Module, tuple[Certificate, ...]]:
    """As :func:`rewrite_certified`, but without checks of reshapes: the network may run only at the sample's sizes."""
    rewriter = Rewriter(graph, model, masks)
    for island in graph.captured.islands:
        rewriter.add_island(island)
    opaque = "" in graph.captured.opaque
    pruned = rewriter.opaque("") if opaque else rewriter.assembled(graph.captured)
    return pruned, tuple(rewriter.certificates)


def _modes_read(specializations: Iterable[Captured]) -> dict[str, list[bool]]:
    """By part, the flags that the forward reads, in eval and in training; only those that the graph depends on."""
    flags = [(p, c.flags[False], c.flags.get(True, c.flags[False])) for c in specializations for p in c.modes_read]
    asked = {path: [evaluating[path], training[path]] for path, evaluating, training in flags}
    two_graphs = any(captured.training_graph is not None for captured in specializations)
    return {part: modes for part, modes in sorted(asked.items()) if two_graphs or modes != [False, True]}


def node_keep(
    graph: ChannelGraph, captured: Captured, masks: Mapping[Channels, Mask]
) -> dict[str, tuple[torch.Tensor | None, ...]]:
    """By name of each node whose value loses elements: the kept indices of every dim (None: all)."""
    found, known = {}, KnownIndices()
    for node in captured.graph.nodes:
        if node.op.startswith("call_") and isinstance(node.meta.get("val"), torch.Tensor) and node in graph.axes:
            indices = kept_indices(map(graph.solver.resolve, graph.axes[node]), masks, known)
            if any(index is not None for index in indices):
                found[node.name] = indices
    return found


def _kept_out(model: nn.Module, root: Mapping[str, Any]) -> list[str]:
    """The non-persistent buffers of the original that the new network holds directly."""
    modules = named_modules(model)
    names = (f"{path}.{name}".lstrip(".") for path, m in modules for name in m._non_persistent_buffers_set)
    return [name for name in names if name in root]
