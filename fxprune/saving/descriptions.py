"""A network as data: its modules, its tensors' names and its graph; everything but the values of its tensors."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule

from fxprune.errors import ArtefactError
from fxprune.rewriting.pruned_module import PrunedGraphModule, graph_name
from fxprune.saving.graphs import encode_graph
from fxprune.saving.layers import build_container, container_name, describe_layer, is_container, is_layer
from fxprune.saving.opaque import StateWriter, describe_opaque, is_plain_layer, plain_attributes
from fxprune.saving.targets import check_identifier
from fxprune.saving.tensors import TensorEntry, inventory
from fxprune.util.modes import CALLS
from fxprune.util.paths import Parts

# Graphs lie in a file under these names: of a mode, and for inputs of other sizes with a number.
_GRAPH = re.compile(r"(?P<name>(eval|training)(_[1-9]\d?)?)_graph")


@dataclass(frozen=True)
class ModuleEntry:
    """One path to one module.

    Attributes:
        path: dotted path; empty for a root that is no GraphModule.
        layer: class name in ``torch.nn`` and constructor arguments as JSON data, or None.
        container: class name in ``torch.nn`` of a module that only holds others.
        foreign: import path of the class (``"kind"``), attributes (``"state"``) and names that hold None
            (``"absent"``), for a module that is kept as one call and for what lies inside it; or None.
        graphs: for a GraphModule inside such a module, the nodes of its graph in each mode; its kind is
            "GraphModule", and it has the ``"name"`` of its class.
        shared_with: the first path of the same module, where this path is a further one.
        training: whether the module is in train mode.
        modes: of a GraphModule inside such a module, how it switches modes, as in :class:`PrunedGraphModule`.
    """

    path: str
    layer: dict[str, Any] | None = None
    shared_with: str | None = None
    training: bool = False
    foreign: dict[str, Any] | None = None
    graphs: dict[str, list[dict[str, Any]]] | None = None
    container: str = "Module"
    modes: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON data; what has its usual value is left out."""
        data: dict[str, Any] = {"path": self.path, **(self.layer or {}), **(self.foreign or {})}
        data |= _graphs_as_dict(self.graphs or {}) | ({"modes": self.modes} if self.modes else {})
        if self.container != "Module":
            data["container"] = self.container
        if self.shared_with is not None:
            data["shared_with"] = self.shared_with
        if self.training:
            data["training"] = True
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModuleEntry:
        """Read what :meth:`as_dict` wrote."""
        if len(data.keys() & {"class", "kind", "container", "shared_with"}) > 1:
            raise ArtefactError(f"the module {data['path']!r:.80} is to be two things at once")
        layer = {"class": data["class"], "arguments": data["arguments"]} if "class" in data else None
        names = ("kind", "name", "state", "absent")
        foreign = {name: data[name] for name in names if name in data} if "kind" in data else None
        graphs, training = _graphs_from_dict(data) or None, _mode(data.get("training", False))
        about = (data.get("container", "Module"), _checked_modes(data.get("modes", {})))
        return cls(data["path"], layer, data.get("shared_with"), training, foreign, graphs, *about)


@dataclass(frozen=True)
class Description:
    """Everything about a network but the values of its tensors.

    Attributes:
        class_name: name of the class that the original network has.
        training: whether the network is in train mode.
        modules: every path to every module below the root, parents before children; first the root itself where it
            is no GraphModule.
        tensors: every name of every tensor.
        graphs: for each mode ("eval", and "training" where it differs) the graph's nodes in order, as JSON data, and
            under numbered names ("eval_1") those for inputs of other sizes; empty where the root is no GraphModule.
        imports: import paths of everything that is neither torch's nor written down here, in order.
        modes: how the network switches modes, as in :class:`PrunedGraphModule`; empty where nothing is unusual.
        state_tensors: tensors that the attributes of foreign modules hold, by name.
    """

    class_name: str
    training: bool
    modules: list[ModuleEntry]
    tensors: list[TensorEntry]
    graphs: dict[str, list[dict[str, Any]]] = field(repr=False)
    imports: list[str] = field(default_factory=list)
    state_tensors: dict[str, Any] = field(default_factory=dict, repr=False)
    modes: dict[str, Any] = field(default_factory=dict)

    @property
    def root(self) -> ModuleEntry | None:
        """The root where it is no GraphModule."""
        return self.modules[0] if self.modules and not self.modules[0].path else None

    def as_dict(self) -> dict[str, Any]:
        """JSON data."""
        return {
            "class_name": self.class_name,
            "training": self.training,
            **({"imports": self.imports} if self.imports else {}),
            **({"modes": self.modes} if self.modes else {}),
            "modules": [entry.as_dict() for entry in self.modules],
            "tensors": [entry.as_dict() for entry in self.tensors],
            **_graphs_as_dict(self.graphs),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Description:
        """Read what :meth:`as_dict` wrote.

        Raises:
            ArtefactError: the data is malformed.
        """
        modules = [ModuleEntry.from_dict(entry) for entry in data["modules"]]
        tensors = [TensorEntry.from_dict(entry) for entry in data["tensors"]]
        name, imports = check_identifier(data["class_name"], "class"), list(data.get("imports", []))
        modes = _checked_modes(data.get("modes", {}))
        return cls(name, _mode(data["training"]), modules, tensors, _graphs_from_dict(data), imports, modes=modes)


def _graphs_as_dict(graphs: dict[str, Any]) -> dict[str, Any]:
    return {f"{name}_graph": graph for name, graph in graphs.items()}


def _graphs_from_dict(data: dict[str, Any]) -> dict[str, Any]:
    graphs = {found["name"]: graph for name, graph in data.items() if (found := _GRAPH.fullmatch(name))}
    count = sum(name.startswith("eval") for name in graphs)
    if not graphs.keys() <= {graph_name(training, number) for training in (False, True) for number in range(count)}:
        raise ArtefactError(f"graphs are missing: there are only {', '.join(sorted(graphs))}")
    return graphs


def _mode(training: Any) -> bool:
    if not isinstance(training, bool):
        raise ArtefactError(f"{training!r:.80} is no mode: train mode is true or false")
    return training


def _checked_modes(modes: Any) -> dict[str, Any]:
    """``modes`` itself where it has the form that :class:`PrunedGraphModule` wants."""
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


def check_name(name: Any) -> None:
    """Raise ArtefactError unless ``name`` is a dotted name, of any words that UTF-8 can hold."""
    if not isinstance(name, str) or not all(name.split(".")) or name != name.encode(errors="replace").decode():
        raise ArtefactError(f"{name!r:.80} cannot be the name of a module or a tensor in a file: rename it")


# -- of a network ------------------------------------------------------------------------------------------------------


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
    name, imports = check_identifier(type(network).__name__, "class"), list(writer.imports)
    about = (entries, tensors, graphs, imports, dict(writer.tensors), _modes_of(network))
    return Description(name, network.training, *about)


def _modes_of(network: nn.Module) -> dict[str, Any]:
    modes = network.modes if isinstance(network, PrunedGraphModule) else {}
    return dict(modes) if any(modes.values()) else {}


def graphs_of(network: GraphModule) -> dict[str, Graph]:
    """The graph of each mode: "eval", and "training" where it is another one."""
    return network.named_graphs if isinstance(network, PrunedGraphModule) else {"eval": network.graph}


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
        for path, module in found:
            _check_hooks(path, module)
            _check_hidden(path, module)
        return found[1:] if isinstance(self._network, GraphModule) else found

    def entry(self, path: str, module: nn.Module, writer: StateWriter) -> ModuleEntry:
        """The entry of one path; parents come before children."""
        check_name(path or "root")
        inside = self._called_by_code.get(path.rpartition(".")[0], False) if path else False
        first = self._first_path[id(module)]
        if first != path:
            self._called_by_code[path] = self._called_by_code[first]
            return ModuleEntry(path, shared_with=first, training=module.training)
        if isinstance(module, GraphModule):
            self._called_by_code[path] = False
            return _island(path, module, writer)
        container = container_name(module)
        self._called_by_code[path] = inside and is_container(module)
        if container is not None:
            return ModuleEntry(path, training=module.training, container=container)
        if is_layer(module) and (not inside or is_plain_layer(path, module)):
            return ModuleEntry(path, describe_layer(path, module), training=module.training)
        self._called_by_code[path] = True
        return ModuleEntry(path, training=module.training, foreign=describe_opaque(path, module, writer))


def _check_hooks(path: str, module: nn.Module) -> None:
    if any(name.endswith("hooks") and held for name, held in vars(module).items()):
        where = path or "the network"
        raise ArtefactError(f"cannot save {where}: it has hooks, which are code and not data: remove them first")


def _check_hidden(path: str, module: nn.Module) -> None:
    """Refuse parts of a container that are called like what it keeps for itself."""
    own = (
        build_container("Module" if isinstance(module, Parts) else type(module).__name__)
        if is_container(module)
        else None
    )
    if hidden := (vars(own).keys() & module._modules.keys() if own is not None else None):
        where = f"{path}.{min(hidden)}".lstrip(".")
        raise ArtefactError(
            f"cannot save {where!r}: it is called like an attribute of the module that holds it: rename it"
        )


def _island(path: str, module: GraphModule, writer: StateWriter) -> ModuleEntry:
    island: dict[str, Any] = {"kind": "GraphModule", "name": check_identifier(type(module).__name__, "class")}
    if attributes := writer.attributes(plain_attributes(module), type(module), path):
        island["state"] = attributes
    graphs, modes = _encoded(module, writer), _modes_of(module)
    return ModuleEntry(path, training=module.training, foreign=island, graphs=graphs, modes=modes)
