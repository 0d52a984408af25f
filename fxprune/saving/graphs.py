"""A torch.fx graph as JSON data, and back.

torch.fx prints a graph as Python source and runs that source, so every name that reaches the source is checked first.
What a node may call is listed (:mod:`fxprune.saving.targets`); beside that a graph makes the objects that a network
returns: named tuples, which are written as names, and dataclasses and dicts of a library's own, which are imported
where the caller allows it, as custom autograd functions are.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen
from torch.nn.utils.rnn import PackedSequence

from fxprune.capture.custom import CustomFunction
from fxprune.errors import ArtefactError
from fxprune.saving.layers import is_container, submodule
from fxprune.saving.opaque import Imported, import_path
from fxprune.saving.targets import check_call, check_identifier, check_method, function_name, resolve_function
from fxprune.saving.values import decode, encode

_ROLE = "the class of an output"
CUSTOM_ROLE = "a custom autograd function"
Need = Callable[[Any, str], str]


def encode_graph(graph: Graph, owner: GraphModule, need: Need) -> list[dict[str, Any]]:
    """The nodes of a graph in order, as JSON data; ``need`` notes what loading has to import.

    Raises:
        ArtefactError: a node calls something that a saved network may not call.
    """
    if type(graph._codegen) is not CodeGen:  # another one may unpack inputs in its own way
        raise ArtefactError(f"the graph prints itself through {type(graph._codegen).__name__}, which cannot be saved")
    return [_encode_node(node, owner, need) for node in graph.nodes]


def _encode_node(node: Node, owner: GraphModule, need: Need) -> dict[str, Any]:
    data: dict[str, Any] = {"name": node.name, "op": node.op, "target": _encode_target(node, owner, need)}
    check_call(node.op, node.target, node.args, node.kwargs)
    try:
        if node.args:
            data["args"] = [encode(argument) for argument in node.args]
        if node.kwargs:
            data["kwargs"] = {key: encode(argument) for key, argument in node.kwargs.items()}
    except ArtefactError as error:
        raise ArtefactError(f"node {node.name!r}: {error}") from None
    return data


def _encode_target(node: Node, owner: GraphModule, need: Need) -> Any:
    if node.op != "call_function":
        _check_target(node.op, str(node.target), owner)
        return str(node.target)
    if is_namedtuple(node.target):
        return {"namedtuple": [node.target.__name__, *node.target._fields]}  # type: ignore[union-attr]
    if isinstance(node.target, CustomFunction):
        return {"custom": need(node.target.cls, CUSTOM_ROLE)}
    return {"import": need(node.target, _ROLE)} if _is_output_class(node.target) else function_name(node.target)


def decode_graph(data: list[dict[str, Any]], owner: nn.Module, found: Imported) -> Graph:
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
    graph: Graph, entry: dict[str, Any], nodes: dict[str, Node], owner: nn.Module, found: Imported
) -> Node:
    op, name = entry["op"], entry["name"]
    args = tuple(decode(argument, nodes) for argument in entry.get("args", []))
    kwargs = {check_identifier(k, "keyword"): decode(v, nodes) for k, v in entry.get("kwargs", {}).items()}
    target: Any = entry["target"]
    if op == "call_function":
        target = _decode_function(target, found)
    else:
        _check_target(op, target, owner)
    check_call(op, target, args, kwargs)
    return graph.create_node(op, target, args, kwargs, name)


def _decode_function(written: Any, found: Imported) -> Callable[..., Any]:
    if not isinstance(written, dict):
        return resolve_function(written)
    if set(written) == {"import"}:
        return _output_class(written["import"], found)
    if set(written) == {"custom"}:
        cls = found.get(written["custom"]) if isinstance(written["custom"], str) else None
        if not isinstance(cls, type) or not issubclass(cls, torch.autograd.Function):
            raise ArtefactError(f"the graph calls {written!r:.80}, which is no custom function that its imports list")
        return CustomFunction(cls)
    names = written.get("namedtuple")
    if set(written) != {"namedtuple"} or not isinstance(names, list) or not names:
        raise ArtefactError(f"the graph calls {written!r:.80}, which is no named tuple")
    return _namedtuple(*(check_identifier(text, "named tuple or its field") for text in names))


def _check_target(op: str, target: Any, owner: nn.Module) -> None:
    if not isinstance(target, str):
        raise ArtefactError(f"{target!r:.80} cannot be the target of a {op} node")
    if op == "placeholder":
        check_identifier(target[2:] if target.startswith("**") else target.removeprefix("*"), "input")
    elif op == "call_method":
        check_method(target)
    elif op == "call_module":
        if is_container(submodule(owner, target)):
            raise ArtefactError(f"the graph calls {target!r}, which only holds other modules")
    elif op == "get_attr":
        path, _, name = target.rpartition(".")
        if tensor_in(submodule(owner, path), name) is None:
            raise ArtefactError(f"the graph reads {target!r:.80}, which the network does not hold")
    elif op != "output":
        raise ArtefactError(f"{op!r:.80} is no kind of node")


def tensor_in(holder: nn.Module, name: str) -> torch.Tensor | None:
    """The parameter, buffer or plain tensor that a module holds under a name; nothing else that it has is looked at."""
    for held in (holder._parameters, holder._buffers, vars(holder)):
        if isinstance(found := held.get(name), torch.Tensor):
            return found
    return None


# -- objects that a network returns ------------------------------------------------------------------------------------


def is_namedtuple(target: Any) -> bool:
    """Whether a call target is a class made by ``collections.namedtuple`` or ``typing.NamedTuple``, not torch's own."""
    if target is PackedSequence:  # layers know it by its class
        return False
    return isinstance(target, type) and issubclass(target, tuple) and hasattr(target, "_fields")


@cache
def _namedtuple(name: str, *fields: str) -> type:
    try:
        return namedtuple(name, fields)
    except ValueError as error:
        raise ArtefactError(f"the graph returns an impossible named tuple: {error}") from error


def output_class_path(target: Any) -> str | None:
    """The import path of a dataclass, or of a dict of its own class, that holds tensors; None for any other target.

    Raises:
        ArtefactError: it cannot be imported by its name.
    """
    return import_path(target, _ROLE) if _is_output_class(target) else None


def _is_output_class(target: Any) -> bool:
    if not isinstance(target, type) or target in (dict, OrderedDict) or issubclass(target, nn.Module):
        return False
    return dataclasses.is_dataclass(target) or issubclass(target, dict)


def _output_class(path: Any, found: Imported) -> type:
    kind = found.get(path) if isinstance(path, str) else None
    if not _is_output_class(kind):
        raise ArtefactError(f"the graph makes a {path!r:.80}, which is no class of outputs that its imports list")
    assert isinstance(kind, type)
    return kind
