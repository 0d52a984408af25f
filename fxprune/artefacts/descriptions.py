"""A network as data: its layers, its tensors' names and its graph."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule

from fxprune.artefacts.entries import Description, ModuleEntry, check_name
from fxprune.artefacts.foreign import describe_foreign, is_plain_layer, plain_attributes
from fxprune.artefacts.graphs import encode_graph
from fxprune.artefacts.imports import TRUSTED
from fxprune.artefacts.modules import describe_layer, is_container, is_layer
from fxprune.artefacts.states import StateWriter
from fxprune.artefacts.tensors import inventory
from fxprune.rewriting.pruned_module import PrunedGraphModule

__all__ = ["describe", "graphs_of"]


def describe(network: nn.Module) -> Description:
    """The description of a network.

    Raises:
        ArtefactError: the network holds something that cannot be written as data; the message names it.
    """
    modules, writer = _Modules(network), StateWriter(_first_paths(network))
    entries = [modules.entry(path, module, writer) for path, module in modules.listed()]
    tensors = inventory(network)
    for tensor_entry in tensors:
        check_name(tensor_entry.name)
    graphs = _encoded(network, writer) if isinstance(network, GraphModule) else {}
    imports = [path for path in writer.imports if path not in TRUSTED]
    name = type(network).__name__
    return Description(name, network.training, entries, tensors, graphs, imports, dict(writer.tensors))


def graphs_of(network: GraphModule) -> dict[str, Graph]:
    """The graph of each mode: "eval", and "training" where it is another one."""
    return network.graphs if isinstance(network, PrunedGraphModule) else {"eval": network.graph}


def _encoded(network: GraphModule, writer: StateWriter) -> dict[str, list[dict[str, Any]]]:
    return {mode: encode_graph(graph, network, writer.need) for mode, graph in graphs_of(network).items()}


def _first_paths(network: nn.Module) -> dict[int, str]:
    return {id(module): path for path, module in network.named_modules()}


class _Modules:
    """Every path to every module, and whether foreign code or a graph calls what lies there."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._first_path = _first_paths(network)
        self._called_by_code: dict[str, bool] = {}

    def listed(self) -> list[tuple[str, nn.Module]]:
        """Paths and modules, the root only where it is no GraphModule."""
        found = list(self._network.named_modules(remove_duplicate=False))
        return found[1:] if isinstance(self._network, GraphModule) else found

    def entry(self, path: str, module: nn.Module, writer: StateWriter) -> ModuleEntry:
        """The entry of one path; parents come before children."""
        check_name(path or "root")
        inside = self._called_by_code.get(path.rpartition(".")[0], False) if path else False
        first = self._first_path[id(module)]
        if first != path:
            self._called_by_code[path] = self._called_by_code[first]
            return ModuleEntry(path, shared_with=first, training=module.training)
        if isinstance(module, GraphModule) and (inside or not path):
            return self._island(path, module, writer)
        if inside or not (is_container(module) or is_layer(module)):
            return self._foreign(path, module, writer)
        self._called_by_code[path] = False
        layer = None if is_container(module) else describe_layer(path, module)
        return ModuleEntry(path, layer, None, module.training)

    def _island(self, path: str, module: GraphModule, writer: StateWriter) -> ModuleEntry:
        self._called_by_code[path] = False
        island: dict[str, Any] = {"kind": "GraphModule", "name": type(module).__name__}
        if attributes := writer.attributes(plain_attributes(module), path):
            island["state"] = attributes
        return ModuleEntry(path, None, None, module.training, island, _encoded(module, writer))

    def _foreign(self, path: str, module: nn.Module, writer: StateWriter) -> ModuleEntry:
        if is_layer(module) and is_plain_layer(path, module):
            self._called_by_code[path] = False
            return ModuleEntry(path, describe_layer(path, module), None, module.training)
        self._called_by_code[path] = True
        return ModuleEntry(path, None, None, module.training, describe_foreign(path, module, writer))
