"""The result: a GraphModule that keeps its training graph, and buffers out of its state dict, through copies."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph_module import _assign_attr

from fxprune.rewriting.graph_data import graph_as_data, graph_from_data

# The name, among what is opaque, of a training mode that could not be traced.
UNTRACED_TRAINING = "the forward in training mode"


class PrunedGraphModule(fx.GraphModule):
    """A ``torch.fx.GraphModule`` with one graph for each mode where the two differ.

    ``.train()`` and ``.eval()`` put the right one in place; both run over the same modules and tensors. ``graph`` and
    ``code`` are those of the present mode.
    """

    def __init__(
        self,
        root: Mapping[str, Any],
        graph: fx.Graph,
        training_graph: fx.Graph | None = None,
        *,
        class_name: str = "GraphModule",
        kept_out: Collection[str] = (),
    ) -> None:
        """``root`` holds modules and tensors by dotted target; ``kept_out`` names buffers not in the state dict."""
        super().__init__(dict(root), graph, class_name)
        self._class_name = class_name
        self._eval_graph = graph
        self._training_graph = training_graph
        for target in _targets(training_graph) if training_graph is not None else ():
            if not _has(self, target):
                _assign_attr(root[target], self, target)
        for name in kept_out:
            path, _, leaf = name.rpartition(".")
            self.get_submodule(path)._non_persistent_buffers_set.add(leaf)
        self._kept_out = tuple(kept_out)

    @property
    def graphs(self) -> dict[str, fx.Graph]:
        """The graph of each mode: "eval", and "training" where it is another one."""
        graphs = {"eval": self._eval_graph}
        return graphs if self._training_graph is None else graphs | {"training": self._training_graph}

    def train(self, mode: bool = True) -> PrunedGraphModule:
        """Switch every submodule, and the graph where the two modes have different ones.

        Warns where training mode could not be traced, so that it runs the graph of eval mode.
        """
        if mode:
            _warn_of_eval_graph(self.meta)
        if self._training_graph is not None:
            wanted = self._training_graph if mode else self._eval_graph
            if self._graph is not wanted:
                self.graph = wanted
        super().train(mode)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> PrunedGraphModule:
        root = {t: copy.deepcopy(_get(self, t), memo) for t in self._all_targets()}
        return self._twin(root, self._eval_graph, self._training_graph, copy.deepcopy(self.meta, memo))

    def __reduce__(self) -> Any:
        root = {t: _get(self, t) for t in self._all_targets()}
        graphs = [None if g is None else graph_as_data(g) for g in self._both()]
        about = (self._class_name, self._kept_out, self.training, self.meta, _order(self), _extras(self))
        return _unpickled, (root, graphs, *about)

    def _twin(self, root: dict[str, Any], graph: fx.Graph, training: fx.Graph | None, meta: Any) -> PrunedGraphModule:
        second = None if training is None else _copied(training)
        twin = PrunedGraphModule(root, _copied(graph), second, class_name=self._class_name, kept_out=self._kept_out)
        set_mode(twin, self.training)
        arrange(twin, self)
        carry(self, twin)
        twin.meta = meta
        return twin

    def _both(self) -> tuple[fx.Graph, fx.Graph | None]:
        return self._eval_graph, self._training_graph

    def _all_targets(self) -> list[str]:
        return list(dict.fromkeys(t for g in self._both() if g is not None for t in _targets(g)))


def _warn_of_eval_graph(meta: Mapping[str, Any]) -> None:
    report = meta.get("fxprune", {}).get("report")
    for row in getattr(report, "opaque", ()):
        if row.name == UNTRACED_TRAINING:
            warnings.warn(f"{row.reason} (functional dropout and the like stay off)", stacklevel=3)


def _unpickled(
    root: dict[str, Any],
    graphs: list[Any],
    class_name: str,
    kept_out: tuple[str, ...],
    training: bool,
    meta: dict[str, Any],
    order: list[str],
    extras: dict[str, Any],
) -> PrunedGraphModule:
    second = None if graphs[1] is None else graph_from_data(graphs[1])
    module = PrunedGraphModule(root, graph_from_data(graphs[0]), second, class_name=class_name, kept_out=kept_out)
    set_mode(module, training)
    for name in order:
        _move_last(module, name)
    module.meta = meta
    for name, value in extras.items():
        setattr(module, name, value)
    return module


def carry(source: nn.Module, target: nn.Module) -> None:
    """Copy what code around a module may ask it for beside a call, such as a number of output channels."""
    for name, value in _extras(source).items():
        if name not in vars(target):
            setattr(target, name, copy.deepcopy(value))


def _extras(module: nn.Module) -> dict[str, Any]:
    own = {"training", "meta", "_kept_out"}
    plain = {n: v for n, v in vars(module).items() if not n.startswith("_") and n not in own}
    return {n: v for n, v in plain.items() if not isinstance(v, (torch.Tensor, nn.Module, fx.Graph))}


def _order(module: nn.Module) -> list[str]:
    """Names of all submodules, parameters and buffers in the order they are held."""
    modules = module.named_modules()
    return [f"{p}.{n}".lstrip(".") for p, m in modules for n in (*m._modules, *m._parameters, *m._buffers)]


def _move_last(module: nn.Module, name: str) -> None:
    path, _, leaf = name.rpartition(".")
    parent = module.get_submodule(path)
    for held in (parent._modules, parent._parameters, parent._buffers):
        if leaf in held:
            held[leaf] = held.pop(leaf)  # type: ignore[assignment]


def set_mode(module: PrunedGraphModule, mode: bool) -> None:
    # Not train(): submodules have been copied with their own modes.
    if mode and module._training_graph is not None:
        module.graph = module._training_graph
    module.training = mode


def _copied(graph: fx.Graph) -> fx.Graph:
    twin = fx.Graph()
    twin.output(twin.graph_copy(graph, {}))
    return twin


def _targets(graph: fx.Graph) -> list[str]:
    return [str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")]


def arrange(module: nn.Module, like: nn.Module) -> None:
    """Put submodules, parameters and buffers in the order that ``like`` has them, as optimiser state goes by order."""
    for held, order in (
        (module._modules, like._modules),
        (module._parameters, like._parameters),
        (module._buffers, like._buffers),
    ):
        ranks = {name: rank for rank, name in enumerate(order)}
        for name in sorted(held, key=lambda n: ranks.get(n, len(ranks))):
            held[name] = held.pop(name)  # type: ignore[assignment]
    for name, child in module._modules.items():
        twin = like._modules.get(name)
        if child is not None and twin is not None:
            arrange(child, twin)


def _get(module: nn.Module, target: str) -> Any:
    path, _, leaf = target.rpartition(".")
    return getattr(module.get_submodule(path), leaf)


def _has(module: nn.Module, target: str) -> bool:
    try:
        return isinstance(_get(module, target), (nn.Module, torch.Tensor))
    except AttributeError:
        return False
