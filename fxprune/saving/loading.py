"""The network of a description."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn
from torch.fx import GraphModule

from fxprune.errors import ArtefactError, PlanError
from fxprune.planning.plan import Plan
from fxprune.reporting import Report
from fxprune.rewriting.pruned_module import PrunedGraphModule
from fxprune.saving.descriptions import Description, ModuleEntry, check_name
from fxprune.saving.folders import MANIFEST, SavedFolder, open_folder
from fxprune.saving.graphs import decode_graph, tensor_in
from fxprune.saving.layers import (
    build_container,
    build_layer,
    finish_container,
    is_container,
    is_layer,
    public_class,
    submodule,
)
from fxprune.saving.opaque import STATE_TENSOR, Imported, StateReader, build_opaque, fill, resolve_imports
from fxprune.saving.targets import check_identifier
from fxprune.saving.tensors import TensorEntry, attach
from fxprune.saving.values import decode_sample
from fxprune.util.writing import named

Graphs = Mapping[str, list[dict[str, Any]]]


def build(description: Description, tensors: Mapping[str, torch.Tensor], found: Imported) -> nn.Module:
    """The network of a description, with the given tensors by name; ``found`` is what its import paths lead to.

    Raises:
        ArtefactError: the description is inconsistent, or a tensor is missing or has the wrong shape.
    """
    _check_names(description)
    root = description.root
    tree = nn.Module() if root is None else _made(nn.Module(), root, found)
    below = [entry for entry in description.modules if entry.path]
    for entry in below:
        _add_module(tree, entry, found)
    _attach_all(tree, description, tensors)
    for module in tree.modules():
        finish_container(module)
    # From the inside out, so that each graph finds what it calls.
    islands = [entry for entry in below if entry.graphs is not None]
    for entry in reversed(islands):
        _replace(tree, entry.path, _island(tree, entry, description, found))
    network = tree
    if root is None:
        about = (description.class_name, description.graphs, tree, description, "", found, description.modes)
        network = _assemble(*about)
    _fill_all(network, description, tensors, found)
    _set_modes(network, description)
    _check_tensors(network, description, tensors)
    return network


def _check_names(description: Description) -> None:
    """Refuse two entries of one name, and a module inside itself."""
    paths = [entry.path for entry in description.modules]
    names = [entry.name for entry in description.tensors]
    for kind, listed in (("modules", paths), ("tensors", names)):
        if len(set(listed)) != len(listed):
            twice = next(name for name in listed if listed.count(name) > 1)
            raise ArtefactError(f"two {kind} are called {twice!r:.80}")
    for entry in description.modules:
        layers = (entry.layer or {}).get("arguments", {}).get("num_layers", 0)
        if isinstance(layers, int) and layers > len(names):
            raise ArtefactError(f"{entry.path!r:.80} is to have {layers} layers, and there are {len(names)} tensors")
        if entry.shared_with is not None and f"{entry.path}.".startswith(f"{entry.shared_with}.".lstrip(".")):
            raise ArtefactError(f"the module {entry.path!r:.80} cannot be put in its place: it would hold itself")


def _check_tensors(network: nn.Module, description: Description, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse tensors that nothing asks for. A shared module's are in a file under each of its paths."""
    held = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    known = {name for name, _ in held} | {entry.name for entry in description.tensors}
    unknown = sorted(name for name in set(tensors) - known if not name.startswith(STATE_TENSOR))
    if unknown:
        raise ArtefactError(f"the weights hold {unknown[0]!r:.80}, which the network does not have")


# -- modules ---------------------------------------------------------------------------------------------------------


def _add_module(network: nn.Module, entry: ModuleEntry, found: Imported) -> None:
    check_name(entry.path)
    parent_path, _, name = entry.path.rpartition(".")
    parent, made = submodule(network, parent_path), _made(network, entry, found)
    place = parent._modules.get(name)
    if is_layer(parent) and (place is None or public_class(place) is not public_class(made)):
        raise ArtefactError(f"the module {entry.path!r:.80} cannot be put in its place: its layer has none there")
    if is_container(parent) and place is None and name in vars(parent):
        raise ArtefactError(f"the module {entry.path!r:.80} cannot be put in its place: it would hide an attribute")
    parent._modules[name] = made


def _made(network: nn.Module, entry: ModuleEntry, found: Imported) -> nn.Module:
    if entry.shared_with is not None:
        return submodule(network, entry.shared_with)
    if entry.layer is not None:
        return build_layer(entry.path, entry.layer)
    if entry.foreign is not None and entry.graphs is None:
        return build_opaque(entry.foreign, found)
    return build_container(entry.container)


def _replace(network: nn.Module, path: str, new: nn.Module) -> None:
    """Put a module in the place of another, under every path that leads to it."""
    old = submodule(network, path)
    for holder in list(network.modules()):
        for name, held in holder._modules.items():
            if held is old:
                holder._modules[name] = new


def _fill_all(
    network: nn.Module, description: Description, tensors: Mapping[str, torch.Tensor], found: Imported
) -> None:
    reader = StateReader(network, tensors, found)
    for entry in description.modules:
        if entry.foreign is not None:
            fill(submodule(network, entry.path), entry.foreign.get("state", {}), reader)


def _set_modes(network: nn.Module, description: Description) -> None:
    # Not by train(), which a class of the user's may have of its own.
    modes = {"": description.training} | {entry.path: entry.training for entry in description.modules}
    for path, mode in modes.items():
        submodule(network, path).training = mode
    for module in network.modules():
        if isinstance(module, PrunedGraphModule):
            module.set_modes({})


# -- tensors ---------------------------------------------------------------------------------------------------------


def _attach_all(tree: nn.Module, description: Description, tensors: Mapping[str, torch.Tensor]) -> None:
    foreign = {entry.path for entry in description.modules if entry.foreign is not None}
    for entry in description.tensors:
        check_name(entry.name)
        if entry.name not in tensors and entry.tied_to is None:
            raise ArtefactError(f"the weights lack {entry.name!r:.80}")
        tensor = _tensor_of(tree, entry, tensors)
        attach(tree, entry, tensor, foreign=entry.name.rpartition(".")[0] in foreign)
    for name, tensor in [*tree.named_parameters(), *tree.named_buffers()]:
        if tensor.is_meta:
            raise ArtefactError(f"the network lists no values for {name!r}")


def _tensor_of(network: nn.Module, entry: TensorEntry, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    if entry.tied_to is None:
        return tensors[entry.name]
    path, _, name = entry.tied_to.rpartition(".")
    holder = submodule(network, path)
    tensor = holder._parameters.get(name) if entry.kind == "parameter" else holder._buffers.get(name)
    if tensor is None:
        raise ArtefactError(f"{entry.name!r:.80} is tied to {entry.tied_to!r:.80}, which the network does not hold")
    return tensor


# -- graphs ----------------------------------------------------------------------------------------------------------


def _island(network: nn.Module, entry: ModuleEntry, description: Description, found: Imported) -> PrunedGraphModule:
    name = check_identifier((entry.foreign or {}).get("name"), "class")
    tree = submodule(network, entry.path)
    return _assemble(name, entry.graphs or {}, tree, description, f"{entry.path}.", found, entry.modes)


def _assemble(
    class_name: str,
    encoded: Graphs,
    tree: nn.Module,
    description: Description,
    prefix: str,
    found: Imported,
    modes: Mapping[str, Any],
) -> PrunedGraphModule:
    graphs = {mode: decode_graph(nodes, tree, found) for mode, nodes in encoded.items()}
    for mode in graphs.keys() - {"eval"}:  # which is printed at once; one that cannot be is no graph
        graphs[mode].python_code("self")
    nodes = [node for graph in graphs.values() for node in graph.nodes]
    root: dict[str, Any] = {str(n.target): submodule(tree, str(n.target)) for n in nodes if n.op == "call_module"}
    read = dict.fromkeys(str(node.target) for node in nodes if node.op == "get_attr")
    root |= {name: tensor_in(submodule(tree, path), leaf) for name in read for path, _, leaf in [name.rpartition(".")]}
    constants = [e.name for e in description.tensors if e.kind == "constant" and e.name.startswith(prefix)]
    kept_out = [name[len(prefix) :] for name in constants if name[len(prefix) :] in read]
    network = PrunedGraphModule(root, graphs, class_name=class_name, kept_out=kept_out, modes=modes)
    # The tree has their order, which optimisers go by, what is in the state dict but in no graph, and its containers.
    for held in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
        vars(network)[held] = vars(tree)[held]
    return network


def load(path: str | os.PathLike[str], *, allow: Iterable[Any] = ()) -> GraphModule:
    """The network that :func:`fxprune.save` wrote; it trains, and :func:`fxprune.report` tells about it.

    No pickle is read and no code of the folder is run: the graph is built from data, and what it may call is looked up
    in a fixed list. A network with opaque modules needs their classes, which are imported only where named.

    Args:
        path: the folder.
        allow: import paths (``"package.module:Class"``) of classes and functions from outside torch that may be
            imported, or these themselves.

    Returns:
        The network; a ``torch.fx.GraphModule``, or of its own class where the original's forward is opaque.

    Raises:
        ArtefactError: the folder was not saved by fxprune, is incomplete or was changed, needs another torch, or needs
            a class that ``allow`` does not name; the message lists them.
    """
    with open_folder(named(path)) as folder:
        for name in ("graph.json", "weights.safetensors"):
            if name not in folder.manifest["files"]:
                raise ArtefactError(f"{folder.path} is incomplete: its {MANIFEST} does not list {name}")
        try:
            return _load(folder, allow)
        except ArtefactError as error:
            hint = _version_hint(folder.manifest)
            raise ArtefactError(f"{folder.path} cannot be loaded: {error!s:.2000}{hint}") from error
        except Exception as error:  # what torch.fx does with data of the wrong form has no end of kinds
            raise ArtefactError(f"{folder.path} cannot be loaded: graph.json is malformed ({error!r:.200})") from error


def _load(folder: SavedFolder, allow: Iterable[Any]) -> GraphModule:
    data = folder.read_json("graph.json")
    description = Description.from_dict(data)
    found = resolve_imports(description.imports, allow)
    tensors = _read_tensors(folder, "weights.safetensors")
    if "constants.safetensors" in folder.manifest["files"]:
        tensors |= _read_tensors(folder, "constants.safetensors")
    network = build(description, tensors, found)
    about: dict[str, Any] = {"sample": decode_sample(data.get("sample"))}
    if "report.json" in folder.manifest["files"]:
        about["report"] = _read_report(folder)
    network.meta = {"fxprune": about}  # type: ignore[assignment]  # what is no GraphModule has no such attribute yet
    return network  # type: ignore[return-value]  # as the docstring says


def load_report(path: str | os.PathLike[str]) -> Report:
    """The report of a saved network alone, without building the network.

    Raises:
        ArtefactError: the folder was not saved by fxprune, is incomplete or was changed, or holds no report.
    """
    with open_folder(named(path)) as folder:
        if "report.json" not in folder.manifest["files"]:
            raise ArtefactError(f"{folder.path} holds no report: the network was not made by fxprune.compile")
        return _read_report(folder)


def _read_report(folder: SavedFolder) -> Report:
    try:
        listed = "plan.json" in folder.manifest["files"]
        plan = Plan.from_json(folder.read_text("plan.json")) if listed else None
        return Report.from_dict(folder.read_json("report.json"), plan=plan)
    except ArtefactError:
        raise
    except PlanError as error:
        raise ArtefactError(f"plan.json: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(f"report.json is malformed: {error!r:.200}") from error


def _read_tensors(folder: SavedFolder, name: str) -> dict[str, torch.Tensor]:
    try:
        read = safetensors.torch.load_file(folder.location(name))
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ArtefactError(f"{name} is no valid safetensors file: {error}") from error
    # Memory of their own, as the file's need not be aligned as torch's is, and vector code may then round otherwise.
    return {key: tensor.clone() for key, tensor in read.items()}


def _version_hint(manifest: dict[str, Any]) -> str:
    versions = manifest.get("versions")
    saved = versions.get("torch") if isinstance(versions, dict) else None
    return f" (saved with torch {saved}, this is {torch.__version__})" if saved != str(torch.__version__) else ""
