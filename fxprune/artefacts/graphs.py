"""A torch.fx graph as JSON data, and back.

torch.fx prints a graph as Python source and runs that source, so every name that reaches the source is checked first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen

from fxprune.artefacts.containers import decode_container, encode_container
from fxprune.artefacts.modules import is_container
from fxprune.artefacts.namedtuples import decode_namedtuple, encode_namedtuple
from fxprune.artefacts.targets import (
    check_arguments,
    check_identifier,
    check_method,
    function_name,
    resolve_function,
)
from fxprune.artefacts.values import decode, encode
from fxprune.errors import ArtefactError

__all__ = ["decode_graph", "encode_graph"]


def encode_graph(graph: Graph, owner: GraphModule, need: Callable[[Any, str], str]) -> list[dict[str, Any]]:
    """The nodes of a graph in order, as JSON data; ``need`` notes what loading has to import.

    Raises:
        ArtefactError: a node calls something that a saved network may not call.
    """
    if type(graph._codegen) is not CodeGen:  # another one may unpack inputs in its own way
        raise ArtefactError(f"the graph prints itself through {type(graph._codegen).__name__}, which cannot be saved")
    return [_encode_node(node, owner, need) for node in graph.nodes]


def _encode_node(node: Node, owner: GraphModule, need: Callable[[Any, str], str]) -> dict[str, Any]:
    data: dict[str, Any] = {"name": node.name, "op": node.op, "target": _encode_target(node, owner, need)}
    check_arguments(node.target, node.args, node.kwargs)
    try:
        if node.args:
            data["args"] = [encode(argument) for argument in node.args]
        if node.kwargs:
            data["kwargs"] = {key: encode(argument) for key, argument in node.kwargs.items()}
    except ArtefactError as error:
        raise ArtefactError(f"node {node.name!r}: {error}") from None
    return data


def _encode_target(node: Node, owner: GraphModule, need: Callable[[Any, str], str]) -> Any:
    if node.op == "call_function":
        written = encode_namedtuple(node.target) or encode_container(node.target, need)
        return written or function_name(node.target)
    target = str(node.target)
    _check_target(node.op, target, owner)
    return target


def decode_graph(data: list[dict[str, Any]], owner: nn.Module, found: Mapping[str, Any]) -> Graph:
    """The graph that :func:`encode_graph` wrote; ``owner`` holds the modules and tensors that it names.

    ``found`` is what the allowed import paths lead to.

    Raises:
        ArtefactError: the data is malformed, or a node calls something that a saved network may not call.
    """
    graph = Graph()
    nodes: dict[str, Node] = {}
    for entry in data:
        name = check_identifier(entry["name"], "node")
        if name in nodes:
            raise ArtefactError(f"two nodes of the graph are called {name!r}")
        nodes[name] = _decode_node(graph, entry, nodes, owner, found)
    outputs = [entry for entry in data if entry["op"] == "output"]
    if len(outputs) != 1 or data[-1] is not outputs[0]:
        raise ArtefactError("the graph does not end in one output")
    return graph


def _decode_node(
    graph: Graph, entry: dict[str, Any], nodes: dict[str, Node], owner: nn.Module, found: Mapping[str, Any]
) -> Node:
    op, name = entry["op"], entry["name"]
    args = tuple(decode(argument, nodes) for argument in entry.get("args", []))
    kwargs = {check_identifier(k, "keyword"): decode(v, nodes) for k, v in entry.get("kwargs", {}).items()}
    target: str | Callable[..., Any]
    if op == "call_function":
        target = _decode_function(entry["target"], found)
        check_arguments(target, args, kwargs)
    else:
        target = entry["target"]
        _check_target(op, target, owner)
    return graph.create_node(op, target, args, kwargs, name)


def _decode_function(written: Any, found: Mapping[str, Any]) -> Callable[..., Any]:
    if not isinstance(written, dict):
        return resolve_function(written)
    return decode_container(written, found) or decode_namedtuple(written)


def _check_target(op: str, target: Any, owner: nn.Module) -> None:
    if not isinstance(target, str):
        raise ArtefactError(f"{target!r:.80} cannot be the target of a {op} node")
    if op == "placeholder":
        check_identifier(target.lstrip("*"), "input")
    elif op == "call_method":
        check_method(target)
    elif op == "call_module":
        if is_container(_submodule(owner, target)):
            raise ArtefactError(f"the graph calls {target!r}, which only holds other modules")
    elif op == "get_attr":
        path, _, name = target.rpartition(".")
        holder = _submodule(owner, path)
        if not any(name in names for names in (holder._parameters, holder._buffers, _plain_tensors(holder))):
            raise ArtefactError(f"the graph reads {target!r:.80}, which the network does not hold")
    elif op != "output":
        raise ArtefactError(f"{op!r:.80} is no kind of node")


def _plain_tensors(holder: nn.Module) -> list[str]:
    return [name for name, value in vars(holder).items() if isinstance(value, torch.Tensor)]


def _submodule(owner: nn.Module, path: str) -> nn.Module:
    # Module.get_submodule would follow any attribute; only registered children may be named.
    module = owner
    for name in path.split(".") if path else []:
        child = module._modules.get(name)
        if child is None:
            raise ArtefactError(f"the graph names the module {path!r:.80}, which the network does not hold")
        module = child
    return module
