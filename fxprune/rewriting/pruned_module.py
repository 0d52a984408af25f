"""The result: a GraphModule that keeps its training graph, and buffers out of its state dict, through copies."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import fx, nn

from fxprune.model_paths import PartsModule, PlainNames, attribute, copied_graph
from fxprune.rewriting.choosing import number_of_forward
from fxprune.rewriting.graph_data import graph_as_data, graph_from_data

Graphs = Mapping[str, fx.Graph]

# The name, among what is opaque, of a training mode that could not be traced.
UNTRACED_TRAINING = "the forward in training mode"


class PrunedGraphModule(PartsModule):
    """A ``torch.fx.GraphModule`` with one graph for each mode where the two differ, and for sizes that need their own.

    ``.train()`` and ``.eval()`` put the right one in place; all run over the same modules and tensors. ``graph`` and
    ``code`` are those of the present mode, for inputs like the sample. Where the original takes another way for inputs
    of other sizes, a call runs the first graph whose checks of sizes hold; for each new shape that is found out once,
    without values.
    """

    _class_name: str
    _graphs: dict[str, fx.Graph]
    _kept_out: tuple[str, ...]
    _others: dict[bool, list[Callable[..., Any]]]

    def __init__(
        self,
        root: Mapping[str, Any],
        graphs: Graphs,
        *,
        class_name: str = "GraphModule",
        kept_out: Collection[str] = (),
    ) -> None:
        """``root`` holds modules and tensors by dotted name; ``kept_out`` names buffers not in the state dict.

        ``graphs``: as in :attr:`graphs`, with those names as targets.
        """
        # First of all, so that a part which is called like one of these is seen to be hidden by it.
        own = {"_class_name": class_name, "_graphs": dict(graphs), "_kept_out": tuple(kept_out)}
        vars(self).update(own, _others={}, _chosen={})
        super().__init__(root, graphs["eval"], class_name)
        for graph in self._graphs.values():
            self._replace_targets(graph)
        for name in kept_out:
            path, _, leaf = name.rpartition(".")
            attribute(self, path)._non_persistent_buffers_set.add(leaf)
        # Forwards of the further variants by mode; what they call is looked up in the module that is passed.
        self._others = {
            mode: [_forward_of(self, self._graph_of(mode, number)) for number in range(1, self._count())]
            for mode in (False, True)
        }
        if self._count() > 1:
            self.recompile()

    @property
    def graphs(self) -> dict[str, fx.Graph]:
        """The graph of each mode: "eval", and "training" where it is another one.

        Those for inputs of other sizes are "eval_1", "training_1" and so on.
        """
        return dict(self._graphs)

    @property
    def named_graphs(self) -> dict[str, fx.Graph]:
        """Copies of the same with the true names of modules and tensors as targets, which are data and no code."""
        return {name: self.with_names(graph) for name, graph in self._graphs.items()}

    def train(self, mode: bool = True) -> PrunedGraphModule:
        """Switch every submodule, and the graph where the two modes have different ones.

        Warns where training mode could not be traced, so that it runs the graph of eval mode.
        """
        if mode:
            _warn_of_eval_graph(self.meta)
        wanted = self._graph_of(mode, 0)
        if self._graph is not wanted:
            self.graph = wanted
        super().train(mode)
        return self

    def recompile(self) -> Any:
        """Make ``forward`` from the graph anew."""
        code = super().recompile()
        if any(vars(self).get("_others", {}).values()):
            cls: Any = type(self)
            cls.forward = _choosing(cls.forward)
        return code

    def for_sizes_of(self, *args: Any, **kwargs: Any) -> PrunedGraphModule:
        """A network over the same tensors with the one graph, in each mode, that takes inputs of such sizes."""
        if self._count() == 1:
            return self
        number = self._number_for(args, kwargs)
        graphs = {mode: self.with_names(self._graph_of(mode == "training", number)) for mode in ("eval", "training")}
        if self._graph_of(True, number) is self._graph_of(False, number):
            del graphs["training"]
        root = {name: attribute(self, name) for graph in graphs.values() for name in _targets(graph)}
        kept_out = [name for name in self._kept_out if name in root]
        twin = PrunedGraphModule(root, graphs, class_name=self._class_name, kept_out=kept_out)
        set_mode(twin, self.training)
        twin.meta = self.meta
        return twin

    def plainly_named(self) -> PrunedGraphModule:
        """A network over the same tensors whose names torch.export can write into the code that it makes.

        A name that is more than plain words, or that means something else to a module, gives way to one like it.
        """
        if not self._names:
            return self
        names, graphs = PlainNames(), self.named_graphs
        plain = {name: names.of(name) for name in _all_targets(graphs)}
        for node in (
            node for graph in graphs.values() for node in graph.nodes if node.op in ("call_module", "get_attr")
        ):
            node.target = plain[str(node.target)]
        root = {new: attribute(self, name) for name, new in plain.items()}
        kept_out = [plain[name] for name in self._kept_out]
        twin = PrunedGraphModule(root, graphs, class_name=self._class_name, kept_out=kept_out)
        set_mode(twin, self.training)
        twin.meta = self.meta
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> PrunedGraphModule:
        graphs = self.named_graphs
        root = {name: copy.deepcopy(attribute(self, name), memo) for name in _all_targets(graphs)}
        twin = PrunedGraphModule(root, graphs, class_name=self._class_name, kept_out=self._kept_out)
        set_mode(twin, self.training)
        arrange(twin, self)
        carry(self, twin)
        twin.meta = copy.deepcopy(self.meta, memo)
        return twin

    def __reduce__(self) -> Any:
        named = self.named_graphs
        root = {name: attribute(self, name) for name in _all_targets(named)}
        graphs = {name: graph_as_data(graph) for name, graph in named.items()}
        about = (self._class_name, self._kept_out, self.training, self.meta, _order(self), _extras(self))
        return _unpickled, (root, graphs, *about)

    def _count(self) -> int:
        return sum(name.startswith("eval") for name in self._graphs)

    def _graph_of(self, training: bool, number: int) -> fx.Graph:
        plain = self._graphs[graph_name(False, number)]
        return self._graphs.get(graph_name(True, number), plain) if training else plain

    def _number_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Which variant takes inputs of these sizes."""
        first = type(self).forward.__wrapped__  # type: ignore[attr-defined]
        return number_of_forward(self, [first, *self._others[self.training]], args, kwargs)


def _forward_of(module: fx.GraphModule, graph: fx.Graph) -> Callable[..., Any]:
    forward: Callable[..., Any] = type(fx.GraphModule(module, copied_graph(graph))).forward
    return forward


def _choosing(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of a network with variants: ``forward``, or that of the variant that takes the inputs."""

    @functools.wraps(forward)
    def chosen(self: PrunedGraphModule, *args: Any, **kwargs: Any) -> Any:
        forwards = [forward, *self._others[self.training]]
        return forwards[number_of_forward(self, forwards, args, kwargs)](self, *args, **kwargs)

    return chosen


def graph_name(training: bool, variant: int) -> str:
    """The name of a graph among :attr:`PrunedGraphModule.graphs`."""
    return ("training" if training else "eval") + (f"_{variant}" if variant else "")


def _warn_of_eval_graph(meta: Mapping[str, Any]) -> None:
    report = meta.get("fxprune", {}).get("report")
    for row in getattr(report, "opaque", ()):
        if row.name == UNTRACED_TRAINING:
            warnings.warn(f"{row.reason} (functional dropout and the like stay off)", stacklevel=3)


def _unpickled(
    root: dict[str, Any],
    graphs: dict[str, Any],
    class_name: str,
    kept_out: tuple[str, ...],
    training: bool,
    meta: dict[str, Any],
    order: list[str],
    extras: dict[str, Any],
) -> PrunedGraphModule:
    built = {name: graph_from_data(graph) for name, graph in graphs.items()}
    module = PrunedGraphModule(root, built, class_name=class_name, kept_out=kept_out)
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
    parent = attribute(module, path)
    for held in (parent._modules, parent._parameters, parent._buffers):
        if leaf in held:
            held[leaf] = held.pop(leaf)


def set_mode(module: PrunedGraphModule, mode: bool) -> None:
    # Not train(): submodules have been copied with their own modes.
    wanted = module._graph_of(mode, 0)
    if module.graph is not wanted:
        module.graph = wanted
    module.training = mode


def _all_targets(graphs: Graphs) -> list[str]:
    return list(dict.fromkeys(name for graph in graphs.values() for name in _targets(graph)))


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
