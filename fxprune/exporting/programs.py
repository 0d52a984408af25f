"""A network as an exported program of torch, with the sizes that may change."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from fxprune.errors import ExportError
from fxprune.rewriting import PrunedGraphModule
from fxprune.samples import Sample

__all__ = ["exported_program"]


def exported_program(network: nn.Module, samples: Sequence[Sample]) -> ExportedProgram:
    """The program of one call, that of the first sample; sizes in which another sample differs may change.

    Raises:
        Exception: of many types, where torch cannot trace the network with these sizes.
    """
    sample = samples[0]
    if isinstance(network, PrunedGraphModule):
        network = network.for_sizes_of(*sample.args, **sample.kwargs).plainly_named()
    _check_names(network)
    signature = inspect.signature(network.forward)
    bound = [signature.bind(*other.args, **other.kwargs).arguments for other in samples]
    shapes = {name: pytree.tree_map(_changing_dims, *(other[name] for other in bound)) for name in bound[0]}
    if isinstance(network, fx.GraphModule):
        network = _with_copied_lists(network)
    with torch.no_grad():
        return torch.export.export(network, sample.args, sample.kwargs, dynamic_shapes=shapes)


def _check_names(network: nn.Module) -> None:
    """Refuse names that torch would write into code as they are, in modules whose own code may ask for them."""
    held = (*network.named_modules(), *network.named_parameters(), *network.named_buffers())
    for name in (name for name, _ in held if not re.fullmatch(r"[A-Za-z0-9_.]*", name)):
        raise ExportError(f"{name!r} is no plain name, and torch.export writes names into code that it runs: rename it")


def _changing_dims(first: Any, *others: Any) -> dict[int, Any] | None:
    if not isinstance(first, torch.Tensor):
        return None
    changing = [dim for dim, size in enumerate(first.shape) if any(other.shape[dim] != size for other in others)]
    return dict.fromkeys(changing, Dim.AUTO)


def _with_copied_lists(network: fx.GraphModule) -> fx.GraphModule:
    """The network, but modules that are kept as one call are handed copies of lists, which they may write into.

    torch.export runs a graph node by node, with the lists that the nodes themselves hold, and these cannot be written.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(network.graph, {}))
    for node in graph.find_nodes(op="call_module"):
        with graph.inserting_before(node):
            node.args = tuple(_copied(graph, argument) for argument in node.args)
            node.kwargs = {name: _copied(graph, argument) for name, argument in node.kwargs.items()}
    if len(graph.nodes) == len(network.graph.nodes):
        return network
    return fx.GraphModule(network, graph)


def _copied(graph: fx.Graph, argument: Any) -> Any:
    if not isinstance(argument, list):
        return argument
    return graph.call_function(list, ([_copied(graph, item) for item in argument],))
