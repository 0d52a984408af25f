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

__all__ = ["Description", "ModuleEntry", "build", "describe"]

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
        nodes: the graph's nodes, in order, as JSON data.
    """

    class_name: str
    training: bool
    modules: list[ModuleEntry]
    tensors: list[TensorEntry]
    nodes: list[dict[str, Any]] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """JSON data."""
        return {
            "class_name": self.class_name,
            "training": self.training,
            "modules": [entry.as_dict() for entry in self.modules],
            "tensors": [entry.as_dict() for entry in self.tensors],
            "nodes": self.nodes,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Description:
        """Read what :meth:`as_dict` wrote.

        Raises:
            ArtefactError: the data is malformed.
        """
        modules = [ModuleEntry.from_dict(entry) for entry in data["modules"]]
        tensors = [TensorEntry.from_dict(entry) for entry in data["tensors"]]
        return cls(check_identifier(data["class_name"], "class"), data["training"], modules, tensors, data["nodes"])


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
    nodes = encode_graph(network.graph, network)
    return Description(type(network).__name__, network.training, modules, tensors, nodes)


def build(description: Description, tensors: dict[str, torch.Tensor]) -> GraphModule:
    """The network of a description, with the given tensors by name.

    Raises:
        ArtefactError: the description is inconsistent, or a tensor is missing or has the wrong shape.
    """
    network = GraphModule(nn.Module(), Graph(), class_name=description.class_name)
    for entry in description.modules:
        _add_module(network, entry)
    for tensor_entry in description.tensors:
        _check_name(tensor_entry.name)
        if tensor_entry.name not in tensors and tensor_entry.tied_to is None:
            raise ArtefactError(f"the weights lack {tensor_entry.name!r:.80}")
        attach(network, tensor_entry, _tensor_of(network, tensor_entry, tensors))
    _check_complete(network)
    network.graph = decode_graph(description.nodes, network)
    network.graph.lint()
    network.train(description.training)
    for entry in description.modules:
        network.get_submodule(entry.path).training = entry.training
    return network


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not all(_PLAIN_NAME.fullmatch(part) for part in name.split(".")):
        raise ArtefactError(f"{name!r:.80} cannot be the name of a module or a tensor")


def _add_module(network: GraphModule, entry: ModuleEntry) -> None:
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


def _tensor_of(network: GraphModule, entry: TensorEntry, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    if entry.tied_to is None:
        return tensors[entry.name]
    path, _, name = entry.tied_to.rpartition(".")
    holder = network.get_submodule(path)
    tensor = holder._parameters.get(name) if entry.kind == "parameter" else holder._buffers.get(name)
    if tensor is None:
        raise ArtefactError(f"{entry.name!r:.80} is tied to {entry.tied_to!r:.80}, which the network does not hold")
    return tensor


def _check_complete(network: GraphModule) -> None:
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.is_meta:
            raise ArtefactError(f"the network lists no values for {name!r}")
