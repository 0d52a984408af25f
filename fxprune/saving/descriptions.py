"""A network as data: its modules, the names of its tensors and its graphs; everything except the tensors' values.

A description is the content of ``graph.json``. Entries with their default value are left out.

========================  ==============================================================================================
``class_name``            name of the original network's class
``training``              whether the network is in train mode
``imports``               import paths of all code that is neither torch's nor described here, in order
``modes``                 how the network switches modes, as in :attr:`PrunedGraphModule.modes`
``eval_graph`` ...        the nodes of the graph of each mode ("training" if it differs); under numbered names
                          ("eval_1_graph") those for inputs of other sizes. Absent if the root is not a GraphModule.
``modules``               every path to every module below the root, parents before children; first the root itself
                          if it is not a GraphModule. Besides ``path`` and ``training`` an entry has one of:
                          ``class`` and ``arguments``: a layer of ``torch.nn``; ``container``: a class of ``torch.nn``
                          that only holds others, by default ``Module``; ``shared_with``: the first path of
                          the same module; ``kind``: the import path of another class, with attributes (``state``) and
                          names that hold None (``absent``); or "GraphModule" as ``kind``, inside such a module, with
                          the ``name`` of its class, its graphs and ``modes``.
``tensors``               every ``name`` of every tensor, as in the state dict; its ``kind``: "parameter", "buffer" or
                          "constant", a buffer outside the state dict; ``requires_grad``: false for a parameter that
                          is not trained; ``tied_to``: the first name of the same tensor
``sample``                shapes and dtypes of the sample with which the network was compiled
========================  ==============================================================================================
"""

from __future__ import annotations

import dataclasses
import re
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen
from torch.nn.utils.rnn import PackedSequence

from fxprune.capture.custom import CustomFunction
from fxprune.errors import ArtefactError
from fxprune.rewriting.pruned_module import PrunedGraphModule, graph_name
from fxprune.saving.layers import container_name, describe_layer, empty_container, is_container, is_layer, submodule
from fxprune.saving.opaque import AttributeWriter, Imported, describe_opaque, is_plain_layer, plain_attributes
from fxprune.saving.targets import (
    OPERATORS,
    check_call,
    check_identifier,
    check_method,
    function_name,
    resolve_function,
)
from fxprune.saving.values import Codec, GraphCodec

GRAPH_MODULE = "GraphModule"
# The keys of graphs in a file: the mode, and a number for inputs of other sizes.
_GRAPH = re.compile(r"(?P<name>(eval|training)(_[1-9]\d?)?)_graph")


def describe(network: nn.Module) -> tuple[Json, dict[str, torch.Tensor]]:
    """A network's description, and the tensors among attributes, by name. Raises ArtefactError: it has no such form."""
    writer = AttributeWriter(network)
    modules, tensors = _module_entries(network, writer), _tensor_entries(network)
    graphs = _graphs(network, writer) if isinstance(network, GraphModule) else {}
    about = {"class_name": check_identifier(type(network).__name__, "class"), "training": network.training}
    imports = {"imports": list(writer.imports)} if writer.imports else {}
    return {**about, **imports, **_modes(network), "modules": modules, "tensors": tensors, **graphs}, writer.tensors


def check_name(name: Any) -> None:
    """Raise ArtefactError unless ``name`` is a dotted name; its parts may be any text that UTF-8 can encode."""
    if not isinstance(name, str) or not all(name.split(".")) or name != name.encode(errors="replace").decode():
        raise ArtefactError(f"{name!r:.80} cannot be the name of a module or a tensor in a file: rename it")


def _modes(network: nn.Module) -> Json:
    modes = network.modes if isinstance(network, PrunedGraphModule) else {}
    return {"modes": dict(modes)} if any(modes.values()) else {}


def _graphs(network: GraphModule, writer: AttributeWriter) -> Json:
    graphs = network.named_graphs if isinstance(network, PrunedGraphModule) else {"eval": network.graph}
    return {f"{mode}_graph": encode_graph(graph, network, writer.need) for mode, graph in graphs.items()}


def graphs_of(entry: Json) -> dict[str, list[Json]]:
    """The nodes of the graph of each mode and size, by its name in :class:`PrunedGraphModule`."""
    graphs = {found["name"]: graph for name, graph in entry.items() if (found := _GRAPH.fullmatch(name))}
    count = sum(name.startswith("eval") for name in graphs)
    if not graphs.keys() <= {graph_name(training, number) for training in (False, True) for number in range(count)}:
        raise ArtefactError(f"graphs are missing: there are only {', '.join(sorted(graphs))}")
    return graphs


def _module_entries(network: nn.Module, writer: AttributeWriter) -> list[Json]:
    first = {id(module): path for path, module in network.named_modules()}
    inside: dict[str, bool] = {}  # whether code from outside torch calls the module at a path
    entries = []
    for path, module in network.named_modules(remove_duplicate=False):
        _check_module(path, module)
        if not path and isinstance(network, GraphModule):
            continue
        check_name(path or "root")
        if first[id(module)] != path:
            told, inside[path] = {"shared_with": first[id(module)]}, inside[first[id(module)]]
        else:
            told, inside[path] = _entry_of(path, module, inside.get(path.rpartition(".")[0], False), writer)
        entries.append({"path": path, **told, **({"training": True} if module.training else {})})
    return entries


def _entry_of(path: str, module: nn.Module, called: bool, writer: AttributeWriter) -> tuple[Json, bool]:
    """A module's entry, and whether foreign code calls its submodules; ``called``: whether it calls the module."""
    if isinstance(module, GraphModule):
        return _island(path, module, writer), False
    container = container_name(module)
    if container is not None:
        return ({"container": container} if container != "Module" else {}), called
    if is_layer(module) and (not called or is_plain_layer(path, module)):
        return describe_layer(path, module), False
    return describe_opaque(path, module, writer), True


def _island(path: str, module: GraphModule, writer: AttributeWriter) -> Json:
    attributes = writer.attributes(plain_attributes(module), type(module), path)
    name = check_identifier(type(module).__name__, "class")
    state = {"state": attributes} if attributes else {}
    return {"kind": GRAPH_MODULE, "name": name, **state, **_graphs(module, writer), **_modes(module)}


def _check_module(path: str, module: nn.Module) -> None:
    """Refuse hooks, replaced methods, and submodules of a container with the name of one of its own attributes."""
    where = path or "the network"
    if any(name.endswith("hooks") and held for name, held in vars(module).items()):
        raise ArtefactError(f"cannot save {where}: it has hooks, which are code and not data: remove them first")
    # Those that set modes are kept by what they do.
    if any(callable(getattr(type(module), name, None)) for name in vars(module).keys() - {"train", "eval"}):
        raise ArtefactError(f"cannot save {where}: one of its methods is replaced by an attribute: delete that first")
    if is_container(module):
        own = empty_container(module)
        for name in sorted(vars(own).keys() & module._modules.keys()):
            where = f"{path}.{name}".lstrip(".")
            reason = "it is called like an attribute of the module that holds it: rename it"
            raise ArtefactError(f"cannot save {where!r}: {reason}")


def named_tensors(model: nn.Module) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Every name of every tensor with its kind, each module visited once: ``(name, kind, tensor)``."""
    for path, module in model.named_modules():
        prefix = path + "." if path else ""
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield prefix + name, "parameter", parameter
        for name, buffer in module._buffers.items():
            if buffer is not None:
                yield prefix + name, "constant" if name in module._non_persistent_buffers_set else "buffer", buffer
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                yield prefix + name, "constant", value


def _tensor_entries(model: nn.Module) -> list[Json]:
    """Every name of every tensor of a network, with ties marked; refuses different tensors that share memory."""
    entries = []
    first: dict[int, str] = {}
    owner: dict[int, str] = {}
    for name, kind, tensor in named_tensors(model):
        check_name(name)
        if tensor.is_meta:
            raise ArtefactError(f"{name!r} is on the meta device and has no values to save: load weights first")
        entry: Json = {"name": name, "kind": kind}
        if kind == "parameter" and not tensor.requires_grad:
            entry["requires_grad"] = False
        if id(tensor) in first:
            entry["tied_to"] = first[id(tensor)]
        elif tensor.numel() and (other := owner.setdefault(tensor.untyped_storage().data_ptr(), name)) != name:
            raise ArtefactError(
                f"{name!r} and {other!r} are views of the same memory but not the same tensor, which a saved network "
                "cannot express: clone one of them"
            )
        first.setdefault(id(tensor), name)
        entries.append(entry)
    return entries


Json = dict[str, Any]
Need = Callable[[Any, str], str]


def encode_graph(graph: Graph, owner: GraphModule, need: Need) -> list[Json]:
    """The nodes of a graph as JSON data; ``need`` records imports. Raises ArtefactError: a call is not allowed."""
    if type(graph._codegen) is not CodeGen:  # other generators may unpack inputs differently
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

    ``found`` maps the allowed import paths to objects. Raises ArtefactError: the data are malformed, or a node calls
    something that a saved network may not call.
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
    if isinstance(target, OPERATORS):
        return {"operator": need(target, "an operator")}
    # torch's layers test for PackedSequence by its class.
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
    if set(written) == {"operator"} and isinstance(made, OPERATORS):
        return made
    if set(written) == {"import"} and _is_output_class(made):
        return made  # type: ignore[return-value]
    known = "not an output class, custom function, operator or named tuple among its imports"
    raise ArtefactError(f"the graph calls {written!r:.80}, which is {known}")


def _is_output_class(target: Any) -> bool:
    """Whether a target is a dataclass or a subclass of dict, as models return for their outputs."""
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
        raise ArtefactError(f"{op!r:.80} is not a kind of node")


def tensor_in(owner: nn.Module, name: str) -> torch.Tensor | None:
    """The parameter, buffer or plain tensor at a dotted name; no other attributes are read."""
    path, _, leaf = name.rpartition(".")
    holder = submodule(owner, path)
    held = (table.get(leaf) for table in (holder._parameters, holder._buffers, vars(holder)))
    return next((tensor for tensor in held if isinstance(tensor, torch.Tensor)), None)
