"""``load``: builds the network of a saved folder."""

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
from fxprune.saving.descriptions import GRAPH_MODULE, Json, check_name, decode_graph, graphs_of, tensor_in
from fxprune.saving.folders import MANIFEST, SavedFolder, open_folder
from fxprune.saving.layers import (
    build_container,
    build_layer,
    finish_container,
    is_container,
    is_layer,
    public_class,
    submodule,
)
from fxprune.saving.opaque import (
    STATE_TENSOR,
    AttributeReader,
    Imported,
    allowed_imports,
    build_opaque,
    resolve_imports,
)
from fxprune.saving.targets import check_identifier
from fxprune.saving.values import decode_sample
from fxprune.util.modes import CALLS
from fxprune.util.writing import checked_path

Tensors = Mapping[str, torch.Tensor]


def load(path: str | os.PathLike[str], *, allow: Iterable[Any] = ()) -> GraphModule:
    """The network that :func:`fxprune.save` wrote; it can be trained, and :func:`fxprune.report` returns its report.

    No pickle is read and no code of the folder is run: the graph is built from data, and may call only functions of a
    fixed list. A network with opaque modules needs their classes, which are imported only if ``allow`` names them.

    Args:
        path: the folder.
        allow: import paths (``"package.module:Class"``) of classes and functions from outside torch that may be
            imported, or the classes and functions themselves.

    Returns:
        The network; a ``torch.fx.GraphModule``, or an instance of its own class if the original's forward is opaque.

    Raises:
        ArtefactError: the folder was not saved by fxprune, is incomplete or was changed, needs another torch, or needs
            a class that ``allow`` does not name; the message lists them.
        OptionError: ``allow`` holds something else.
    """
    allowed = allowed_imports(allow)
    with open_folder(checked_path(path)) as folder:
        for name in ("graph.json", "weights.safetensors"):
            if name not in folder.manifest["files"]:
                raise ArtefactError(f"{folder.path} is incomplete: its {MANIFEST} does not list {name}")
        try:
            return _load(folder, allowed)
        except ArtefactError as error:
            hint = _version_hint(folder.manifest)
            raise ArtefactError(f"{folder.path} cannot be loaded: {error!s:.2000}{hint}") from error
        except Exception as error:  # torch.fx may raise anything for malformed data
            raise ArtefactError(f"{folder.path} cannot be loaded: graph.json is malformed ({error!r:.200})") from error


def load_report(path: str | os.PathLike[str]) -> Report:
    """The report of a saved network, read without building the network.

    Raises:
        ArtefactError: the folder was not saved by fxprune, is incomplete or was changed, or holds no report.
    """
    with open_folder(checked_path(path)) as folder:
        if "report.json" not in folder.manifest["files"]:
            raise ArtefactError(f"{folder.path} holds no report: the network was not made by fxprune.compile")
        return _read_report(folder)


def _load(folder: SavedFolder, allowed: Imported) -> GraphModule:
    data = folder.read_json("graph.json")
    found = resolve_imports(list(data.get("imports", [])), allowed)
    files = [name for name in ("weights.safetensors", "constants.safetensors") if name in folder.manifest["files"]]
    tensors = {name: tensor for file in files for name, tensor in _read_tensors(folder, file).items()}
    network = _build(data, tensors, found)
    about: dict[str, Any] = {"sample": decode_sample(data.get("sample"))}
    if "report.json" in folder.manifest["files"]:
        about["report"] = _read_report(folder)
    network.meta = {"fxprune": about}  # type: ignore[assignment]  # only a GraphModule has it already
    return network  # type: ignore[return-value]  # as the docstring says


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
    # Copies, because memory of the file may not be aligned like torch's, and vector code may then round differently.
    return {key: tensor.clone() for key, tensor in read.items()}


def _version_hint(manifest: dict[str, Any]) -> str:
    versions = manifest.get("versions")
    saved = versions.get("torch") if isinstance(versions, dict) else None
    return f" (saved with torch {saved}, this is {torch.__version__})" if saved != str(torch.__version__) else ""


def _build(data: Json, tensors: Tensors, found: Imported) -> nn.Module:
    """The network of a description, with the given tensors by name; ``found`` maps import paths to objects."""
    _check_entries(data)
    modules = data["modules"]
    has_root = bool(modules) and not modules[0]["path"]
    tree = _made(nn.Module(), modules[0], found) if has_root else nn.Module()
    for entry in modules[has_root:]:
        _add_module(tree, entry, found)
    _check_paths(tree, modules)
    _attach_all(tree, data, tensors)
    for module in tree.modules():
        finish_container(module)
    # From the inside out, so that each graph finds the modules that it calls.
    for entry in reversed([entry for entry in modules[has_root:] if entry.get("kind") == GRAPH_MODULE]):
        _replace(tree, entry["path"], _assemble(entry.get("name"), entry, tree, data, found))
    network = tree if has_root else _assemble(data["class_name"], {**data, "path": ""}, tree, data, found)
    reader = AttributeReader(network, tensors, found)
    for entry in modules:
        if "kind" in entry:
            module, state = submodule(network, entry["path"]), dict(entry.get("state", {}))
            if isinstance(module, GraphModule):
                state.pop("_modes", None)  # earlier versions repeated "modes" here
            vars(module).update(reader.attributes(state, type(module)))
    _set_modes(network, data)
    _check_tensors(network, data, tensors)
    return network


def _check_entries(data: Json) -> None:
    """Refuse entries of two kinds at once, two entries of one name, and a module inside itself."""
    tensors = [entry["name"] for entry in data["tensors"]]
    for kind, names in (("modules", [entry["path"] for entry in data["modules"]]), ("tensors", tensors)):
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ArtefactError(f"two {kind} are called {twice!r:.80}")
    for entry in data["tensors"]:
        check_name(entry["name"])
        if entry["kind"] not in ("parameter", "buffer", "constant"):
            raise ArtefactError(f"the graph lists {entry['name']!r:.80} as a {entry['kind']!r:.80}, no kind of tensor")
    for entry in data["modules"]:
        path, shared = entry["path"], entry.get("shared_with")
        if len(entry.keys() & {"class", "kind", "container", "shared_with"}) > 1:
            raise ArtefactError(f"the module {path!r:.80} is described as two kinds at once")
        layers = entry.get("arguments", {}).get("num_layers", 0)
        if isinstance(layers, int) and layers > len(tensors):
            raise ArtefactError(f"{path!r:.80} has {layers} layers, but there are only {len(tensors)} tensors")
        if "shared_with" in entry and f"{path}.".startswith(f"{shared or ''}.".lstrip(".")):
            raise ArtefactError(f"the module {path!r:.80} cannot be put in its place: it would hold itself")


def _check_paths(tree: nn.Module, modules: list[Json]) -> None:
    """Refuse paths without an entry: modules that are shared level by level have more paths than can be walked."""
    listed = {"", *(entry["path"] for entry in modules)}
    for path, _ in tree.named_modules(remove_duplicate=False):
        if path not in listed:
            raise ArtefactError(f"a shared module has a part at {path!r:.80}, for which there is no entry")


def _check_tensors(network: nn.Module, data: Json, tensors: Tensors) -> None:
    """Refuse tensors that the network does not have. A shared module's tensors are stored under each of its paths."""
    held = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    known = {name for name, _ in held} | {entry["name"] for entry in data["tensors"]}
    unknown = sorted(name for name in set(tensors) - known if not name.startswith(STATE_TENSOR))
    if unknown:
        raise ArtefactError(f"the weights hold {unknown[0]!r:.80}, which the network does not have")


def _set_modes(network: nn.Module, data: Json) -> None:
    # Not by train(), which a user's class may override.
    for entry in ({"path": "", "training": data["training"]}, *data["modules"]):
        mode = entry.get("training", False)
        if not isinstance(mode, bool):
            raise ArtefactError(f"{mode!r:.80} is not a mode: it must be true or false")
        submodule(network, entry["path"]).training = mode
    for module in network.modules():
        if isinstance(module, PrunedGraphModule):
            module.set_modes({})


def _add_module(network: nn.Module, entry: Json, found: Imported) -> None:
    check_name(entry["path"])
    parent_path, _, name = entry["path"].rpartition(".")
    parent, made = submodule(network, parent_path), _made(network, entry, found)
    place = parent._modules.get(name)
    problem = ""
    if is_layer(parent) and (place is None or public_class(place) is not public_class(made)):
        problem = "its layer has none there"
    elif is_container(parent) and place is None and name in vars(parent):
        problem = "it would hide an attribute"
    if problem:
        raise ArtefactError(f"the module {entry['path']!r:.80} cannot be put in its place: {problem}")
    parent._modules[name] = made


def _made(network: nn.Module, entry: Json, found: Imported) -> nn.Module:
    if "shared_with" in entry:
        return submodule(network, entry["shared_with"])
    if "class" in entry:
        return build_layer(entry["path"], entry)
    if entry.get("kind", GRAPH_MODULE) != GRAPH_MODULE:
        return build_opaque(entry, found)
    return build_container(entry.get("container", "Module"))


def _replace(network: nn.Module, path: str, new: nn.Module) -> None:
    """Replace a module by another, under every path that leads to it."""
    old = submodule(network, path)
    for holder in list(network.modules()):
        for name, held in holder._modules.items():
            if held is old:
                holder._modules[name] = new


def _attach_all(tree: nn.Module, data: Json, tensors: Tensors) -> None:
    foreign = {entry["path"] for entry in data["modules"] if "kind" in entry}
    for entry in data["tensors"]:
        name, tied_to = entry["name"], entry.get("tied_to")
        tensor = tensors.get(name) if tied_to is None else _tied(tree, entry)
        if tensor is None:
            raise ArtefactError(
                f"the weights lack {name!r:.80}"
                if tied_to is None
                else f"{name!r:.80} is tied to {tied_to!r:.80}, which the network does not hold"
            )
        _attach(tree, entry, tensor, foreign=name.rpartition(".")[0] in foreign)
    for name, tensor in [*tree.named_parameters(), *tree.named_buffers()]:
        if tensor.is_meta:
            raise ArtefactError(f"the network lists no values for {name!r}")


def _tied(network: nn.Module, entry: Json) -> torch.Tensor | None:
    path, _, name = entry["tied_to"].rpartition(".")
    holder = submodule(network, path)
    return (holder._parameters if entry["kind"] == "parameter" else holder._buffers).get(name)


def _attach(model: nn.Module, entry: Json, tensor: torch.Tensor, *, foreign: bool) -> None:
    """Register a tensor under its name in its layer; ``foreign``: the layer's class was made without its tensors."""
    path, _, name = entry["name"].rpartition(".")
    module = submodule(model, path)
    slots: dict[str, Any] = module._parameters if entry["kind"] == "parameter" else module._buffers
    if not foreign:
        _check_place(module, slots, entry["name"], tensor)
    if entry["kind"] == "parameter":
        trained = entry.get("requires_grad", True)
        if trained and _kind_of(tensor) != "float":
            raise ArtefactError(
                f"{entry['name']!r} holds {tensor.dtype}, and only floating-point numbers can be trained"
            )
        slots[name] = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, trained)
        return
    # Not by the methods of the class, which may be overridden.
    slots[name] = tensor
    (set.discard if entry["kind"] == "buffer" else set.add)(module._non_persistent_buffers_set, name)


def _check_place(module: nn.Module, slots: Json, full_name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor that a layer does not have, or that has another shape or kind of numbers there."""
    name = full_name.rpartition(".")[2]
    expected = slots.get(name)
    if expected is None:
        if name in slots or (hasattr(module, name) and not is_container(module)):
            raise ArtefactError(f"{full_name!r} has no place in its layer {module}")
    elif expected.shape != tensor.shape:
        wanted = tuple(expected.shape)
        raise ArtefactError(f"{full_name!r} has shape {tuple(tensor.shape)}, but its layer {module} wants {wanted}")
    elif _kind_of(expected) != _kind_of(tensor):
        raise ArtefactError(f"{full_name!r} holds {tensor.dtype}, but its layer {module} wants {expected.dtype}")


def _kind_of(tensor: torch.Tensor) -> str:
    """The kind of a tensor's numbers; their precision may differ."""
    if tensor.is_floating_point() or tensor.is_complex():
        return "float"
    return "bool" if tensor.dtype is torch.bool else "integer"


def _assemble(class_name: Any, entry: Json, network: nn.Module, data: Json, found: Imported) -> PrunedGraphModule:
    """The graph module of an entry, over the modules and tensors at its path in the network."""
    path = entry["path"]
    tree, prefix = submodule(network, path), f"{path}." if path else ""
    graphs = {mode: decode_graph(nodes, tree, found) for mode, nodes in graphs_of(entry).items()}
    for mode in graphs.keys() - {"eval"}:  # "eval" is printed below; unprintable graphs are invalid
        graphs[mode].python_code("self")
    nodes = [node for graph in graphs.values() for node in graph.nodes]
    root: dict[str, Any] = {str(n.target): submodule(tree, str(n.target)) for n in nodes if n.op == "call_module"}
    read = {str(node.target): tensor_in(tree, str(node.target)) for node in nodes if node.op == "get_attr"}
    constants = (entry["name"] for entry in data["tensors"] if entry["kind"] == "constant")
    made = PrunedGraphModule(
        root | read,
        graphs,
        class_name=check_identifier(class_name, "class"),
        kept_out=[name[len(prefix) :] for name in constants if name.startswith(prefix) and name[len(prefix) :] in read],
        modes=_checked_modes(entry.get("modes", {})),
    )
    # The tree has their order, which optimisers rely on, entries of the state dict in no graph, and the containers.
    for held in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
        vars(made)[held] = vars(tree)[held]
    return made


def _checked_modes(modes: Any) -> Json:
    """``modes``, if it has the form that :class:`PrunedGraphModule` requires. Raises ArtefactError: it has not."""
    try:
        known = dict(modes)
        pairs = list(known.get("flags", {}).values())
        calls = [call for part in known.get("effects", {}).values() for call in part.items()]
        flags = [*(flag for pair in pairs for flag in pair), *(flag for _, own in calls for flag in own.values())]
        right = known.keys() <= {"effects", "flags", "untraced"} and isinstance(known.get("untraced", ""), str)
        right = right and all(type(pair) is list and len(pair) == 2 for pair in pairs)
    except (TypeError, ValueError, AttributeError):
        right, flags, calls = False, [], []
    if not right or not all(f is None or type(f) is bool for f in flags) or not {name for name, _ in calls} <= {*CALLS}:
        raise ArtefactError(f"{modes!r:.80} does not say how a network switches modes")
    return known
