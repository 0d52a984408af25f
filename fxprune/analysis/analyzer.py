"""Applies the rules of ops to find the axes of every node of a captured graph."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from fxprune.axes.expressions import Axis, Cause, Origin
from fxprune.axes.solver import Solver
from fxprune.capture import Captured
from fxprune.capture.decisions import is_check
from fxprune.capture.tracing import OpaqueOp
from fxprune.errors import AnalysisError, described
from fxprune.rules.call import Call, Ledger, TensorName, concrete, fixed_axes
from fxprune.rules.ops import MOVES, canonical_name, writes_in_place
from fxprune.rules.probing import PROBED, is_probed
from fxprune.rules.registry import ModuleForm, Rule, bind, find_module_form, find_rule
from fxprune.util.copies import tensors_in
from fxprune.util.paths import ModelPaths

# Calls that ask about a tensor but do not read its values.
_ABOUT = (getattr, "size", "dim", "numel")
_DEPTH = 16  # of nested containers
# Errors of a rule that cannot read a use of its op. RuntimeError: it asked a tensor without values for a value.
_UNREAD = (AnalysisError, LookupError, TypeError, ValueError, AttributeError, RuntimeError, StopIteration)


@dataclass
class Analyzer:
    """The axes of every node and tensor of one model's captured graphs: eval, and training where it differs."""

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
        constants = [captured.constants for captured in self.captured.everything()]
        self.paths = ModelPaths(self.model, ChainMap(*constants))
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
            if not (captured.training or captured.specialization):
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
        """Pin the tensors that an opaque module holds outside of its traced parts: it reads them at full width."""
        inside = f"{path}.".lstrip(".")
        reason = f"{path or 'the model'} uses it outside of the parts that are traced"
        for name in (*self.captured.shapes, *self.captured.aliases):
            if name.startswith(inside) and not name.startswith(traced) and name not in self.captured.constants:
                self._pin(self.tensors[self.captured.first_name(name)], reason, Cause("", path))

    def _visit(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return fixed_axes(node.meta["val"], self._boundary("input"))
        if node.op == "get_attr":
            return self._tensor(str(node.target))
        if node.op == "output":
            self._pin_arguments(node, self._boundary("output"))
            return None
        if is_check(node):
            return None
        if node.target == "is_contiguous":
            self._keep_layout(node)
            return None
        value = node.meta["val"]
        if not holds_tensor(value) and canonical_name(node.target) != "setitem":
            if value is None:
                self._pin_arguments(node, self._boundary("output"))
            if node.target not in _ABOUT:
                self._pin_numbers(node)
            return None
        return self._apply_rule(node)

    def _keep_layout(self, node: fx.Node) -> None:
        """Keep all that the answer to ``is_contiguous`` depends on: the order of dims in memory, and gaps."""
        (tensor,) = node.all_input_nodes
        while tensor.all_input_nodes and _has_gaps(tensor.meta["val"]):
            for part in (node, tensor):
                self._pin_arguments(part, "the forward asks for the memory format of a part of a tensor")
            node, tensor = tensor, tensor.all_input_nodes[0]
        self._call(node)[0].keeps(flat_axes(self.axes[tensor]))  # a dim of one element has no order

    def _boundary(self, side: str) -> str:
        whose = f"the {side} of {self._part}, which an opaque module calls" if self._part else f"the network's {side}"
        return f"it is a dim of {whose}"

    def _apply_rule(self, node: fx.Node) -> Any:
        call, rule = self._call(node)
        if rule is None:
            return self._refuse(call, "there is no rule for it")
        try:
            rule.axes(call)
            _check_sizes(call.value, call.result)
            self._tie_out(call)
            self._follow_numbers(call)
        except _UNREAD as error:
            return self._refuse(call, f"this use of it is not understood ({described(error)})")
        self.calls[node] = call
        return call.result

    def _tie_out(self, call: Call) -> None:
        """What is written through ``out=`` has the axes of the result; torch resizes a tensor of another shape."""
        out = call.node.kwargs.get("out")
        written, made = (out, call.result) if isinstance(out, (tuple, list)) else ([out], [call.result])
        for tensor, axes in zip(written, made, strict=True):
            if isinstance(tensor, fx.Node) and self._shape_of(tensor) == tuple(axis.size for axis in axes):
                call.unify_all(self._axes_of(tensor), axes)

    def _follow_numbers(self, call: Call) -> None:
        """Element numbers (indices) that an op only moves still number the same axis; any other use pins that axis."""
        node, numbers = call.node, self.ledger.numbers
        source = node.args[0] if node.args else None
        if (
            isinstance(source, fx.Node)
            and source in numbers
            and source not in call.understood
            and call.name in MOVES
            and not writes_in_place(node)
        ):
            axis = numbers[source]
            call.understood.add(source)
            if isinstance(axis, list):
                numbers[node] = axis[int(concrete(node.args[1]))]
            else:
                call.gives_numbers(*[axis] * (1 if isinstance(call.value, torch.Tensor) else len(call.value)))
        self._pin_numbers(node, call.understood)

    def _pin_numbers(self, node: fx.Node, understood: Collection[fx.Node] = ()) -> None:
        if not self.ledger.numbers:
            return
        cause = Cause(node.name, _op_in_words(node, canonical_name(node.target)), node.meta.get("source", ""))
        for given in node.all_input_nodes:
            if given in self.ledger.numbers and given not in understood:
                self._pin(flat_axes(self.ledger.numbers[given]), "its elements are told apart by number", cause)

    def _call(self, node: fx.Node) -> tuple[Call, Rule | None]:
        name, arguments, rule = self._bound(node)
        cause = Cause(node.name, _op_in_words(node, name), node.meta.get("source", ""))
        read = (self._axes_of, self._shape_of, self.ledger, self.paths.attribute)
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
        rule = PROBED if is_probed(node.target) else find_rule(name)
        return name, bind(rule.signature, args, node.kwargs) if rule else {}, rule

    def _module_arguments(self, node: fx.Node, form: ModuleForm) -> dict[str, Any]:
        module = self.paths.module(str(node.target))
        arguments = form.arguments(module)
        for name, value in arguments.items():
            if isinstance(value, str) and value.startswith("."):
                full = f"{node.target}{value}"
                arguments[name] = TensorName(self.captured.first_name(full))
        return arguments

    def _tensor(self, name: str) -> tuple[Axis, ...]:
        first = self.captured.first_name(name)
        self.used.add(first)
        return self.tensors[first]

    def _axes_of(self, value: Any) -> Any:
        if isinstance(value, TensorName):
            return self._tensor(value.name)
        if isinstance(value, fx.Node):
            return self.axes[value]
        if isinstance(value, (int, float, bool)):
            return ()
        raise AnalysisError(f"an argument of type {type(value).__name__} is not a tensor")

    def _shape_of(self, value: Any) -> tuple[int, ...]:
        return tuple(a.size for a in self._axes_of(value))

    def _refuse(self, call: Call, reason: str) -> Any:
        if call.node.target in self.captured.opaque:
            reason = "it is opaque"
        else:
            self.opaque.append(OpaqueOp(call.node.name, call.cause.op, call.cause.source, reason))
        self._pin_arguments(call.node, f"{call.cause.op}: {reason}")
        for value in call.arguments.values():
            if isinstance(value, TensorName):
                self._pin(self.tensors[value.name], f"{call.cause.op}: {reason}", call.cause)
        return fixed_axes(call.value, f"{call.cause.op}: {reason}")

    def _pin_arguments(self, node: fx.Node, reason: str) -> None:
        cause = Cause(node.name, _op_in_words(node, str(node.op)), node.meta.get("source", ""))
        for argument in node.all_input_nodes:
            self._pin(flat_axes([self.axes[argument], self.ledger.numbers.get(argument)]), reason, cause)

    def _pin(self, axes: Iterable[Axis], reason: str, cause: Cause) -> None:
        """Pin several axes."""
        for axis in axes:
            self.solver.pin(axis, reason, cause)


def _has_gaps(tensor: torch.Tensor) -> bool:
    """Whether a tensor does not fill one block of memory exactly, with each element in its own place."""
    dims = sorted(zip(tensor.stride(), tensor.shape, strict=True))
    dense = 1
    for stride, size in dims:
        if size > 1 and stride != dense:
            return True
        dense *= size
    return False


def holds_tensor(value: Any) -> bool:
    """Whether a node's value is a tensor, or holds one."""
    return next(tensors_in(value, _DEPTH), None) is not None


def flat_axes(axes: Any) -> list[Axis]:
    """All axes of a node's tensors."""
    if axes is None:
        return []
    if isinstance(axes, (list, tuple)):
        return [a for item in axes for a in flat_axes(item)]
    if isinstance(axes, dict):
        return [a for item in axes.values() for a in flat_axes(item)]
    return [axes]


def _check_sizes(value: Any, axes: Any) -> None:
    if isinstance(value, torch.Tensor):
        sizes = None if axes is None else tuple(a.size for a in axes)
        if sizes != tuple(value.shape):
            raise AnalysisError(f"axes of sizes {sizes} for a tensor of shape {tuple(value.shape)}")
    elif isinstance(value, (list, tuple)) and axes is not None:
        for item, item_axes in zip(value, axes, strict=True):
            _check_sizes(item, item_axes)


def _op_in_words(node: fx.Node, name: str) -> str:
    if node.op == "call_module":
        return str(node.target)
    path = node.meta.get("module", "")
    return f"{name} in {path}" if path else name
