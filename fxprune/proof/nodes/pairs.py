"""A captured graph with its rewritten graph, messages about their nodes, and calls of one node."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.samples import Sample
from fxprune.errors import ProofError
from fxprune.proof.locating import NodeKeep
from fxprune.util.copies import attributes_of
from fxprune.util.paths import ModelPaths


class UnjudgedError(Exception):
    """A node cannot be judged by itself; the message says why. It does not mean that the node is wrong."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A captured graph, its rewritten graph, and the certificate: what the pass says about both (to be proven)."""

    label: str  # the graph's name in messages, such as "eval" or "training"
    full: fx.Graph  # the captured graph
    narrow: fx.Graph  # the rewritten graph
    # Certificate: by node of ``full``, the node of ``narrow`` or the number that stands for it; None, or no entry, if
    # nothing does.
    images: Mapping[fx.Node, Any]
    # Certificate: by name of a node of ``full`` whose value loses entries, for each dim the kept indices, None for
    # all.
    kept: NodeKeep
    root: nn.Module  # the module in which targets of ``narrow`` are looked up
    sample: Sample  # inputs for which this graph runs
    constants: Mapping[str, Tensor]  # tensors made by the trace, by their names in ``full``
    prefix: str = ""  # the prefix of targets in ``full`` that targets in ``narrow`` lack
    training: bool = False  # whether it is the graph of training mode
    both_modes: bool = False  # whether training mode runs the graph of eval mode

    def named(self, node: fx.Node) -> tuple[str, Any]:
        """The full name of the module or tensor that a node of ``narrow`` calls or reads, and the object."""
        name_of: Callable[[Any], str] = getattr(self.root, "name_of", str)
        name = name_of(node.target)
        return name, self._paths.attribute(name)

    @functools.cached_property
    def last_read(self) -> Mapping[fx.Node, Collection[fx.Node]]:
        """By node of ``full``, the nodes of which it is the last reader."""
        found: dict[fx.Node, list[fx.Node]] = {}
        seen: set[fx.Node] = set()
        for node in reversed(self.full.nodes):
            for given in (*node.all_input_nodes, *(() if node.users else (node,))):
                if given not in seen:
                    seen.add(given)
                    found.setdefault(node, []).append(given)
        return found

    @functools.cached_property
    def _paths(self) -> ModelPaths:
        return ModelPaths(self.root)


def described(node: fx.Node) -> str:
    """A node, for messages."""
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"{node.name} ({node.op} {target})"


def fault(pair: Pair, node: fx.Node, text: str) -> ProofError:
    """The error for a node of the captured graph; it names the node, its module and its source line."""
    module, source = node.meta.get("module"), node.meta.get("source")
    place = (f" in module {module}" if module else "") + (f" at {source}" if source else "")
    return ProofError(f"{pair.label} graph, node {described(node)}{place}: {text}")


def is_number(node: fx.Node) -> bool:
    """Whether a node of a captured graph returns a Python number or boolean."""
    return isinstance(node.meta.get("val"), (bool, int, float))


def is_sizes(node: fx.Node) -> bool:
    """Whether it returns an integer, or several."""
    value = node.meta.get("val")
    items = value if isinstance(value, (list, tuple)) else (value,)
    return all(isinstance(item, int) and not isinstance(item, bool) for item in items)


# Ops whose result is in new memory.
_FRESH = frozenset("abs add angle cat clone conj_physical div einsum exp matmul mul stack sub sum".split())
_WRITES = frozenset("setitem iadd isub imul itruediv ifloordiv imod ipow iand ior ixor imatmul ilshift irshift".split())


def call_name(node: fx.Node) -> str:
    """The name of the method or function that a node calls; "" for other nodes."""
    if node.op not in ("call_method", "call_function"):
        return ""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def on_values(node: fx.Node, value_of: Callable[[fx.Node], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a node, with nodes replaced by values."""
    args, kwargs = node.args, dict(node.kwargs)
    if getattr(node.target, "__name__", "") == "scaled_dot_product_attention":
        # Dropout is left out; its probability is compared as a literal.
        kwargs.pop("dropout_p", None)
        args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
    args, kwargs = fx.node.map_arg((args, kwargs), value_of)
    return tuple(args), dict(kwargs)


def call(
    node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], module: nn.Module | None, *, drawn: bool = True
) -> Any:
    """A node's result; ``module``: that of a module call; ``drawn``: whether the values were drawn for the proof."""
    if module is not None:
        return module.forward(*args, **kwargs) if drawn else module(*args, **kwargs)
    if node.op == "call_function":
        return node.target(*args, **kwargs)  # type: ignore[operator]
    if drawn and node.target == "is_contiguous":
        raise UnjudgedError(f"{node.name} reads the memory format, which the proof's own values do not have")
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    raise UnjudgedError(f"{node.op} is not a call")


def may_write(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node writes to one of its arguments in place, by its name or by an argument."""
    if module is not None:
        return bool(getattr(module, "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = name in _WRITES or (name.endswith("_") and not name.endswith("__"))
    return in_place or node.kwargs.get("out") is not None or _is_told(node)


def is_only_read(pair: Pair, node: fx.Node) -> bool:
    """Whether nothing writes to memory that the value of a node of ``narrow`` may share with its operands."""
    pending, seen = [node], {node}
    while pending:
        for user in pending.pop().users:
            if may_write(user, pair.named(user)[1] if user.op == "call_module" else None):
                return False
            if user not in seen and call_name(user) not in _FRESH:
                seen.add(user)
                pending.append(user)
    return True


def _is_told(node: fx.Node) -> bool:
    position = _inplace_position(node.target) if node.op == "call_function" else None
    given = node.args[position : position + 1] if position is not None else ()
    return node.kwargs.get("inplace") is True or True in given


@functools.cache
def _inplace_position(function: Any) -> int | None:
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None
    return names.index("inplace") if "inplace" in names else None


def on_tensors(module: nn.Module, tensors: Mapping[str, Tensor | None], training: bool) -> nn.Module:
    """A copy of a module with other parameters and buffers, by name. Raises UnjudgedError: it has submodules."""
    if module._modules:
        raise UnjudgedError(f"{type(module).__name__} has submodules")
    twin = type(module).__new__(type(module))
    vars(twin).update(attributes_of(module))
    vars(twin)["training"] = training
    vars(twin)["_parameters"] = {name: tensors[name] for name in module._parameters}
    vars(twin)["_buffers"] = {name: tensors[name] for name in module._buffers}
    if isinstance(module, nn.RNNBase):
        vars(twin)["_flat_weights"] = [tensors.get(name) for name in module._flat_weights_names]
    return twin


def tensors_among(value: Any) -> list[Tensor]:
    """All tensors in nested arguments or results."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def in_dtype(value: Any, dtype: torch.dtype) -> Any:
    """Nested values with floating tensors in ``dtype`` and complex ones in its complex type."""
    complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64

    def converted(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(complex_dtype)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return converted(value) if type(value) is Tensor else pytree.tree_map_only(Tensor, converted, value)
