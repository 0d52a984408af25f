"""The data that a saved network consists of beside the values of its tensors."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from fxprune.artefacts.targets import check_identifier
from fxprune.artefacts.tensors import TensorEntry
from fxprune.errors import ArtefactError
from fxprune.rewriting.pruned_module import graph_name

__all__ = ["Description", "ModuleEntry", "check_name"]

# Names of modules and tensors reach printed source inside quotes, so they must be plain words.
_PLAIN_NAME = re.compile(r"[\w\-+ ]+")
# Graphs lie in a file under these names: of a mode, and for inputs of other sizes with a number.
_GRAPH = re.compile(r"(?P<name>(eval|training)(_[1-9]\d?)?)_graph")


@dataclass(frozen=True)
class ModuleEntry:
    """One path to one module.

    Attributes:
        path: dotted path; empty for a root that is no GraphModule.
        layer: class name in ``torch.nn`` and constructor arguments as JSON data, or None.
        foreign: import path of the class (``"kind"``), attributes (``"state"``) and names that hold None
            (``"absent"``), for a module that is kept as one call and for what lies inside it; or None.
        graphs: for a GraphModule inside such a module, the nodes of its graph in each mode; its kind is
            "GraphModule", and it has the ``"name"`` of its class.
        shared_with: the first path of the same module, where this path is a further one.
        training: whether the module is in train mode.

    With neither layer nor foreign nor graphs, the module only holds others.
    """

    path: str
    layer: dict[str, Any] | None = None
    shared_with: str | None = None
    training: bool = False
    foreign: dict[str, Any] | None = None
    graphs: dict[str, list[dict[str, Any]]] | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON data; what has its usual value is left out."""
        data: dict[str, Any] = {"path": self.path, **(self.layer or {}), **(self.foreign or {})}
        data |= graphs_as_dict(self.graphs or {})
        if self.shared_with is not None:
            data["shared_with"] = self.shared_with
        if self.training:
            data["training"] = True
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModuleEntry:
        """Read what :meth:`as_dict` wrote."""
        layer = {"class": data["class"], "arguments": data["arguments"]} if "class" in data else None
        names = ("kind", "name", "state", "absent")
        foreign = {name: data[name] for name in names if name in data} if "kind" in data else None
        graphs = graphs_from_dict(data) or None
        return cls(data["path"], layer, data.get("shared_with"), _mode(data.get("training", False)), foreign, graphs)


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
        state_tensors: tensors that the attributes of foreign modules hold, by name.
    """

    class_name: str
    training: bool
    modules: list[ModuleEntry]
    tensors: list[TensorEntry]
    graphs: dict[str, list[dict[str, Any]]] = field(repr=False)
    imports: list[str] = field(default_factory=list)
    state_tensors: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def foreign_root(self) -> dict[str, Any] | None:
        """The root's class and attributes where it is no GraphModule."""
        return self.modules[0].foreign if self.modules and not self.modules[0].path else None

    def as_dict(self) -> dict[str, Any]:
        """JSON data."""
        return {
            "class_name": self.class_name,
            "training": self.training,
            **({"imports": self.imports} if self.imports else {}),
            "modules": [entry.as_dict() for entry in self.modules],
            "tensors": [entry.as_dict() for entry in self.tensors],
            **graphs_as_dict(self.graphs),
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
        return cls(name, _mode(data["training"]), modules, tensors, graphs_from_dict(data), imports)


def graphs_as_dict(graphs: dict[str, Any]) -> dict[str, Any]:
    """The graphs of a network under their names in a file."""
    return {f"{name}_graph": graph for name, graph in graphs.items()}


def graphs_from_dict(data: dict[str, Any]) -> dict[str, Any]:
    """The reverse of :func:`graphs_as_dict`.

    Raises:
        ArtefactError: a graph is missing.
    """
    graphs = {found["name"]: graph for name, graph in data.items() if (found := _GRAPH.fullmatch(name))}
    count = sum(name.startswith("eval") for name in graphs)
    if not graphs.keys() <= {graph_name(training, number) for training in (False, True) for number in range(count)}:
        raise ArtefactError(f"graphs are missing: there are only {', '.join(sorted(graphs))}")
    return graphs


def _mode(training: Any) -> bool:
    if not isinstance(training, bool):
        raise ArtefactError(f"{training!r:.80} is no mode: train mode is true or false")
    return training


def check_name(name: Any) -> None:
    """Raise ArtefactError unless ``name`` is a dotted name of plain words."""
    if not isinstance(name, str) or not all(_PLAIN_NAME.fullmatch(part) for part in name.split(".")):
        raise ArtefactError(f"{name!r:.80} cannot be the name of a module or a tensor")
