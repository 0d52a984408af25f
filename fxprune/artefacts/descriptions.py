"""A network as data: its layers, its tensors' names and its graph, from which the same network can be built."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule

from fxprune.artefacts.graphs import decode_graph, encode_graph
from fxprune.artefacts.modules import build_layer, describe_layer, is_container
from fxprune.artefacts.targets import check_identifier
from fxprune.artefacts.tensors import TensorEntry, attach, inventory
from fxprune.errors import ArtefactError
from fxprune.rewriting.pruned_module import PrunedGraphModule

__all__ = ["Description", "ModuleEntry", "build", "describe", "graphs_of"]

# Names of modules and tensors reach printed source inside quotes, so they must be plain words.
_PLAIN_NAME = re.compile(r"[\w\-+ ]+")


@dataclass(frozen=True)
class ModuleEntry:
    """One path to one module.

    Attributes:
        path: dotted path.
        layer: class name in ``torch.nn`` and constructor arguments as JSON data, or None for a plain container.
        shared_with: the first path of the same module, where this path is a further one.
        training: whether the module is in train mode.
    """

    path: str
    layer: dict[str, Any] | None = None
    shared_with: str | None = None
    training: bool = False

    def as_dict(self) -> dict[str, Any]:
        """JSON data; what has its usual value is left out."""
        data: dict[str, Any] = {"path": self.path, **(self.layer or {})}
        if self.shared_with is not None:
            data["shared_with"] = self.shared_with
        if self.training:
            data["training"] = True
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModuleEntry:
        """Read what :meth:`as_dict` wrote."""
        layer = {"class": data["class"], "arguments": data["arguments"]} if "class" in data else None
        return cls(data["path"], layer, data.get("shared_with"), data.get("training", False))


@dataclass(frozen=True)
class Description:
    """Everything about a network but the values of its tensors.

    Attributes:
        class_name: name of the class that the original network has.
        training: whether the network is in train mode.
        modules: every path to every module below the root, parents before children.
        tensors: every name of every tensor.
        graphs: for each mode ("eval", and "training" where it differs) the graph's nodes in order, as JSON data.
    """

    class_name: str
    training: bool
    modules: list[ModuleEntry]
    tensors: list[TensorEntry]
    graphs: dict[str, list[dict[str, Any]]] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """JSON data."""
        return {
            "class_name": self.class_name,
            "training": self.training,
            "modules": [entry.as_dict() for entry in self.modules],
            "tensors": [entry.as_dict() for entry in self.tensors],
            **{f"{mode}_graph": nodes for mode, nodes in self.graphs.items()},
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Description:
        """Read what :meth:`as_dict` wrote.

        Raises:
            ArtefactError: the data is malformed.
        """
        modules = [ModuleEntry.from_dict(entry) for entry in data["modules"]]
        tensors = [TensorEntry.from_dict(entry) for entry in data["tensors"]]
        graphs = {mode: data[f"{mode}_graph"] for mode in ("eval", "training") if f"{mode}_graph" in data}
        return cls(check_identifier(data["class_name"], "class"), data["training"], modules, tensors, graphs)


def describe(network: GraphModule) -> Description:
    """The description of a network.

    Raises:
        ArtefactError: the network holds something that cannot be written as data; the message names it.
    """
    first_path: dict[int, str] = {}
    modules = []
    for path, module in network.named_modules(remove_duplicate=False):
        shared_with = first_path.setdefault(id(module), path)
        if not path:
            continue
        _check_name(path)
        if shared_with != path:
            modules.append(ModuleEntry(path, shared_with=shared_with, training=module.training))
            continue
        layer = None if is_container(module) else describe_layer(path, module)
        modules.append(ModuleEntry(path, layer, None, module.training))
    tensors = inventory(network)
    for tensor_entry in tensors:
        _check_name(tensor_entry.name)
    graphs = {mode: encode_graph(graph, network) for mode, graph in graphs_of(network).items()}
    return Description(type(network).__name__, network.training, modules, tensors, graphs)


def graphs_of(network: GraphModule) -> dict[str, Graph]:
    """The graph of each mode: "eval", and "training" where it is another one."""
    return network.graphs if isinstance(network, PrunedGraphModule) else {"eval": network.graph}


def build(description: Description, tensors: dict[str, torch.Tensor]) -> PrunedGraphModule:
    """The network of a description, with the given tensors by name.

    Raises:
        ArtefactError: the description is inconsistent, or a tensor is missing or has the wrong shape.
    """
    tree = nn.Module()
    for entry in description.modules:
        _add_module(tree, entry)
    for tensor_entry in description.tensors:
        _check_name(tensor_entry.name)
        if tensor_entry.name not in tensors and tensor_entry.tied_to is None:
            raise ArtefactError(f"the weights lack {tensor_entry.name!r:.80}")
        attach(tree, tensor_entry, _tensor_of(tree, tensor_entry, tensors))
    _check_complete(tree)
    network = _assemble(description, tree)
    network.train(description.training)
    for entry in description.modules:
        network.get_submodule(entry.path).training = entry.training
    return network


def _assemble(description: Description, tree: nn.Module) -> PrunedGraphModule:
    graphs = {mode: decode_graph(nodes, tree) for mode, nodes in description.graphs.items()}
    nodes = [node for graph in graphs.values() for node in graph.nodes]
    root: dict[str, Any] = {str(n.target): tree.get_submodule(str(n.target)) for n in nodes if n.op == "call_module"}
    read = {str(node.target): None for node in nodes if node.op == "get_attr"}
    root |= {name: getattr(tree.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in read}
    constants = [e.name for e in description.tensors if e.kind == "constant" and e.name in read]
    training = graphs.get("training")
    network = PrunedGraphModule(root, graphs["eval"], training, class_name=description.class_name, kept_out=constants)
    _arrange(network, tree)
    return network


def _arrange(network: nn.Module, tree: nn.Module) -> None:
    """Give a module the order of ``tree``, which optimisers go by, and what is in the state dict but in no graph."""
    for name, module in tree._modules.items():
        network._modules[name] = held = network._modules.pop(name, module)
        if held is not None and module is not None and held is not module:
            _arrange(held, module)
    for name, parameter in tree._parameters.items():
        network._parameters[name] = network._parameters.pop(name, parameter)
    for name, buffer in tree._buffers.items():
        if name not in network._buffers:
            network.register_buffer(name, buffer, persistent=name not in tree._non_persistent_buffers_set)
        network._buffers[name] = network._buffers.pop(name)


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not all(_PLAIN_NAME.fullmatch(part) for part in name.split(".")):
        raise ArtefactError(f"{name!r:.80} cannot be the name of a module or a tensor")


def _add_module(network: nn.Module, entry: ModuleEntry) -> None:
    _check_name(entry.path)
    parent_path, _, name = entry.path.rpartition(".")
    try:
        parent = network.get_submodule(parent_path)
        if entry.shared_with is not None:
            module = network.get_submodule(entry.shared_with)
        else:
            module = nn.Module() if entry.layer is None else build_layer(entry.path, entry.layer)
        parent.add_module(name, module)
    except (AttributeError, KeyError) as error:
        raise ArtefactError(f"the module {entry.path!r:.80} cannot be put in its place: {error}") from error


def _tensor_of(network: nn.Module, entry: TensorEntry, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    if entry.tied_to is None:
        return tensors[entry.name]
    path, _, name = entry.tied_to.rpartition(".")
    holder = network.get_submodule(path)
    tensor = holder._parameters.get(name) if entry.kind == "parameter" else holder._buffers.get(name)
    if tensor is None:
        raise ArtefactError(f"{entry.name!r:.80} is tied to {entry.tied_to!r:.80}, which the network does not hold")
    return tensor


def _check_complete(network: nn.Module) -> None:
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.is_meta:
            raise ArtefactError(f"the network lists no values for {name!r}")
