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
from fxprune.saving.opaque import Imported
from fxprune.saving.targets import check_call, check_identifier, check_method, function_name, resolve_function
from fxprune.saving.values import Codec, GraphCodec

Json = dict[str, Any]
Need = Callable[[Any, str], str]


def encode_graph(graph: Graph, owner: GraphModule, need: Need) -> list[Json]:
    """The nodes of a graph in order, as JSON data; ``need`` notes what loading has to import.

    Raises:
        ArtefactError: a node calls something that a saved network may not call.
    """
    if type(graph._codegen) is not CodeGen:  # another one may unpack inputs in its own way
        raise ArtefactError(f"the graph prints itself through {type(graph._codegen).__name__}, which cannot be saved")
    codec = GraphCodec({})
    return [_encode_node(node, owner, need, codec) for node in graph.nodes]


def _encode_node(node: Node, owner: GraphModule, need: Need, codec: Codec) -> Json:
    target = _encode_function(node.target, need) if node.op == "call_function" else str(node.target)
    if node.op != "call_function":
        _check_target(node.op, target, owner)
    check_call(node.op, node.target, node.args, node.kwargs)
    data: Json = {"name": node.name, "op": node.op, "target": target}
    try:
        if node.args:
            data["args"] = [codec.write(argument) for argument in node.args]
        if node.kwargs:
            data["kwargs"] = {key: codec.write(argument) for key, argument in node.kwargs.items()}
    except ArtefactError as error:
        raise ArtefactError(f"node {node.name!r}: {error}") from None
    return data


def decode_graph(data: list[Json], owner: nn.Module, found: Imported) -> Graph:
    """The graph that :func:`encode_graph` wrote; ``owner`` holds the modules and tensors that it names.

    ``found`` is what the allowed import paths lead to.

    Raises:
        ArtefactError: the data is malformed, or a node calls something that a saved network may not call.
    """
    graph = Graph()
    nodes: dict[str, Node] = {}
    codec = GraphCodec(nodes)
    for entry in data:
        name = check_identifier(entry["name"], "node")
        if name in nodes:
            raise ArtefactError(f"two nodes of the graph are called {name!r}")
        op, target = entry["op"], entry["target"]
        args = tuple(codec.read(argument) for argument in entry.get("args", []))
        kwargs = {check_identifier(k, "keyword"): codec.read(v) for k, v in entry.get("kwargs", {}).items()}
        if op == "call_function":
            target = _decode_function(target, found)
        else:
            _check_target(op, target, owner)
        check_call(op, target, args, kwargs)
        nodes[name] = graph.create_node(op, target, args, kwargs, name)
    outputs = [entry for entry in data if entry["op"] == "output"]
    if len(outputs) != 1 or data[-1] is not outputs[0]:
        raise ArtefactError("the graph does not end in one output")
    return graph


def _encode_function(target: Any, need: Need) -> Any:
    if isinstance(target, CustomFunction):
        return {"custom": need(target.cls, "a custom autograd function")}
    # Layers know torch's own named tuple by its class.
    if isinstance(target, type) and issubclass(target, tuple) and hasattr(target, "_fields"):
        if target is not PackedSequence:
            return {"namedtuple": [target.__name__, *target._fields]}
    elif _is_output_class(target):
        return {"import": need(target, "the class of an output")}
    return function_name(target)


def _decode_function(written: Any, found: Imported) -> Callable[..., Any]:
    if not isinstance(written, dict):
        return resolve_function(written)
    if len(written) == 1 and (content := written.get("namedtuple")) and isinstance(content, list):
        return _namedtuple(*(check_identifier(text, "named tuple or its field") for text in content))
    made = next((found.get(path) for path in written.values() if isinstance(path, str)), None)
    if set(written) == {"custom"} and isinstance(made, type) and issubclass(made, torch.autograd.Function):
        return CustomFunction(made)
    if set(written) == {"import"} and _is_output_class(made):
        return made  # type: ignore[return-value]
    known = "no class of outputs, custom function or named tuple that its imports list"
    raise ArtefactError(f"the graph calls {written!r:.80}, which is {known}")


def _is_output_class(target: Any) -> bool:
    """Whether a target is a dataclass, or a dict of its own class, that holds tensors."""
    if not isinstance(target, type) or target in (dict, OrderedDict) or issubclass(target, nn.Module):
        return False
    return dataclasses.is_dataclass(target) or issubclass(target, dict)


@cache
def _namedtuple(name: str, *fields: str) -> type:
    try:
        return namedtuple(name, fields)
    except ValueError as error:
        raise ArtefactError(f"the graph returns an impossible named tuple: {error}") from error


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
        if tensor_in(owner, target) is None:
            raise ArtefactError(f"the graph reads {target!r:.80}, which the network does not hold")
    elif op != "output":
        raise ArtefactError(f"{op!r:.80} is no kind of node")


def tensor_in(owner: nn.Module, name: str) -> torch.Tensor | None:
    """The parameter, buffer or plain tensor at a dotted name; nothing else that modules have is looked at."""
    path, _, leaf = name.rpartition(".")
    holder = submodule(owner, path)
    held = (table.get(leaf) for table in (holder._parameters, holder._buffers, vars(holder)))
    return next((tensor for tensor in held if isinstance(tensor, torch.Tensor)), None)
