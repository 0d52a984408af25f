"""An FX graph as picklable data. FX itself pickles by tracing its printed code again, which not every op survives."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch.fx.node import _get_qualified_name

from fxprune.capture.objects import CopiedObject


@dataclass(frozen=True)
class NodeName:
    """Stands for a node in the arguments of another."""

    name: str


@dataclass(frozen=True)
class NodeData:
    """One node; the function of a ``call_function`` is written as its dotted name, unless it is data itself."""

    name: str
    op: str
    target: Any
    args: Any
    kwargs: Any


def graph_as_data(graph: fx.Graph) -> list[NodeData]:
    """The nodes in order."""
    return [
        NodeData(n.name, n.op, _target_name(n), _without_nodes(n.args), _without_nodes(n.kwargs)) for n in graph.nodes
    ]


def graph_from_data(nodes: list[NodeData]) -> fx.Graph:
    """The graph that :func:`graph_as_data` read."""
    graph = fx.Graph()
    known: dict[str, fx.Node] = {}
    for data in nodes:
        target: Any = _function(data.target) if data.op == "call_function" else data.target
        args, kwargs = (_with_nodes(v, known) for v in (data.args, data.kwargs))
        known[data.name] = graph.create_node(data.op, target, tuple(args), kwargs, name=data.name)
    return graph


def _target_name(node: fx.Node) -> Any:
    if isinstance(node.target, (str, CopiedObject)):
        return node.target
    return _get_qualified_name(node.target)


def _function(name: Any) -> Any:
    if isinstance(name, CopiedObject):
        return name
    path = name if "." in name else f"builtins.{name}"
    parts: list[str] = []
    while True:
        path, _, last = path.rpartition(".")
        parts.insert(0, last)
        try:
            found: Any = importlib.import_module(path)
        except ModuleNotFoundError:
            continue
        for part in parts:
            found = getattr(found, part)
        return found


def _without_nodes(value: Any) -> Any:
    return _mapped(value, lambda v: NodeName(v.name) if isinstance(v, fx.Node) else v)


def _with_nodes(value: Any, known: dict[str, fx.Node]) -> Any:
    return _mapped(value, lambda v: known[v.name] if isinstance(v, NodeName) else v)


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {k: _mapped(v, function) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_mapped(v, function) for v in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, slice):
        return slice(*(_mapped(v, function) for v in (value.start, value.stop, value.step)))
    return function(value)
