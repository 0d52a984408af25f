"""The result: a GraphModule that keeps its training graph, and buffers out of its state dict, through copies."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph_module import _assign_attr


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
        """Switch every submodule, and the graph where the two modes have different ones."""
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
        graphs = [None if g is None else fx.GraphModule(root, _copied(g)) for g in self._both()]
        state = {"class_name": self._class_name, "kept_out": self._kept_out, "training": self.training}
        return _unpickled, (root, graphs, state, self.meta)

    def _twin(self, root: dict[str, Any], graph: fx.Graph, training: fx.Graph | None, meta: Any) -> PrunedGraphModule:
        graphs = [None if g is None else _copied(g) for g in (graph, training)]
        assert graphs[0] is not None
        twin = PrunedGraphModule(root, *graphs, class_name=self._class_name, kept_out=self._kept_out)
        _set_mode(twin, self.training)
        twin.meta = meta
        return twin

    def _both(self) -> tuple[fx.Graph, fx.Graph | None]:
        return self._eval_graph, self._training_graph

    def _all_targets(self) -> list[str]:
        return list(dict.fromkeys(t for g in self._both() if g is not None for t in _targets(g)))


def _unpickled(root: dict[str, Any], graphs: list[Any], state: dict[str, Any], meta: Any) -> PrunedGraphModule:
    both = [None if g is None else g.graph for g in graphs]
    module = PrunedGraphModule(root, *both, class_name=state["class_name"], kept_out=state["kept_out"])
    _set_mode(module, state["training"])
    module.meta = meta
    return module


def _set_mode(module: PrunedGraphModule, mode: bool) -> None:
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


def _get(module: nn.Module, target: str) -> Any:
    path, _, leaf = target.rpartition(".")
    return getattr(module.get_submodule(path), leaf)


def _has(module: nn.Module, target: str) -> bool:
    try:
        return isinstance(_get(module, target), (nn.Module, torch.Tensor))
    except AttributeError:
        return False
