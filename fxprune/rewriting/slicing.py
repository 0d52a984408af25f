"""New tensors and modules that hold the kept entries; none shares storage with the original."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.fx.node import _get_qualified_name

from fxprune.axes.elements import Mask, kept_mask
from fxprune.axes.expressions import Axis, Channels, Fixed
from fxprune.capture.custom import CustomFunction
from fxprune.capture.objects import CopiedObject
from fxprune.rules.registry import torch_class
from fxprune.util.copies import attributes_of, copied_attributes, with_literals_of

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


# By id of an axis: the axis and its kept indices.
KnownIndices = dict[int, tuple[Axis, torch.Tensor | None]]


def kept_indices(
    axes: Iterable[Axis], masks: Mapping[Channels, Mask], known: KnownIndices | None = None
) -> tuple[torch.Tensor | None, ...]:
    """The kept indices of every dim of a tensor, None where all stay; ``known`` caches them by axis."""
    known = {} if known is None else known
    indices: list[torch.Tensor | None] = []
    for axis in axes:
        if id(axis) not in known:
            mask = np.ones(0, np.bool_) if isinstance(axis, Fixed) else kept_mask(axis, masks)
            known[id(axis)] = axis, None if mask.all() else torch.from_numpy(np.flatnonzero(mask))
        indices.append(known[id(axis)][1])
    return tuple(indices)


def sliced(tensor: torch.Tensor, indices: Iterable[torch.Tensor | None]) -> torch.Tensor:
    """A new tensor with the kept entries; a parameter stays a parameter with the same ``requires_grad``.

    Literals that the tensor has as attributes are kept: optimisers read such (``weight.no_weight_decay = True``).
    """
    given = value = tensor.detach()
    for dim, index in enumerate(indices):
        if index is not None:
            value = value.index_select(dim, index.to(value.device))
    if value is given:
        value = value.clone()
    layout = _CHANNELS_LAST.get(tensor.dim())
    if layout is not None and tensor.is_contiguous(memory_format=layout) and not tensor.is_contiguous():
        value = value.contiguous(memory_format=layout)
    is_parameter = isinstance(tensor, nn.Parameter)
    return with_literals_of(tensor, nn.Parameter(value, tensor.requires_grad) if is_parameter else value)


def rebuilt(module: nn.Module, tensors: Mapping[int, torch.Tensor], attributes: Mapping[str, Any]) -> nn.Module:
    """A copy of a torch.nn module, of torch's own class, with new tensors (by id of the old) and attributes."""
    cls = type(module) if type(module).__module__.startswith("torch.nn.") else torch_class(module)
    twin = cls.__new__(cls)
    own = {name: value for name, value in attributes_of(module).items() if name not in ("train", "eval")}
    vars(twin).update(copied_attributes(own, dict(tensors)))
    for name, value in attributes.items():
        if hasattr(twin, name):
            setattr(twin, name, value)
    return twin


@dataclass(frozen=True)
class NodeName:
    """A reference to a node in the arguments of another."""

    name: str


# A node's name, op, target, args and kwargs. A called function is its dotted name, unless it is itself data.
NodeData = tuple[str, str, Any, Any, Any]


def graph_as_data(graph: fx.Graph) -> list[NodeData]:
    """The nodes of a graph as data, in order."""
    return [(n.name, n.op, _target_name(n), *(_without_nodes(v) for v in (n.args, n.kwargs))) for n in graph.nodes]


def graph_from_data(nodes: list[NodeData]) -> fx.Graph:
    """The graph from which :func:`graph_as_data` made the data."""
    graph = fx.Graph()
    known: dict[str, fx.Node] = {}
    for name, op, target, *values in nodes:
        if op == "call_function" and isinstance(target, str):
            target = pkgutil.resolve_name(target if "." in target else f"builtins.{target}")
        args, kwargs = (_with_nodes(value, known) for value in values)
        known[name] = graph.create_node(op, target, args, kwargs, name=name)
    return graph


def _target_name(node: fx.Node) -> Any:
    if isinstance(node.target, (str, CopiedObject, CustomFunction)):
        return node.target
    return _get_qualified_name(node.target)


_mapped: Any = fx.node.map_aggregate  # its annotations do not allow for names in the place of nodes


def _without_nodes(value: Any) -> Any:
    return _mapped(value, lambda v: NodeName(v.name) if isinstance(v, fx.Node) else v)


def _with_nodes(value: Any, known: dict[str, fx.Node]) -> Any:
    return _mapped(value, lambda v: known[v.name] if isinstance(v, NodeName) else v)
