"""The result: a GraphModule whose copies keep its training graph and its non-persistent buffers."""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import fx, nn

from fxprune.errors import ModeError
from fxprune.rewriting.choosing import number_of_forward
from fxprune.rewriting.slicing import graph_as_data, graph_from_data
from fxprune.util.copies import Shared, hold_under_all, is_constant, shared_names
from fxprune.util.modes import CALLS, flags_of, follow, give_own_modes, set_flags
from fxprune.util.paths import Parts, PartsModule, PlainNames, attribute, copied_graph, hold, is_held, parts_like

Graphs = Mapping[str, fx.Graph]


class PrunedGraphModule(PartsModule):
    """A ``torch.fx.GraphModule`` with a graph for each mode, if the modes differ, and for each specialization.

    ``.train()`` and ``.eval()``, of the whole or of a part, set the same modes as in the original, and select the
    graph; all graphs share the same modules and tensors. ``graph`` and ``code`` belong to the current mode, for inputs
    like the sample. A call checks the modes of those parts whose ``training`` flag the original's forward reads, and
    refuses a mixture without a graph. If the original takes another branch for other input sizes, a call runs the first
    graph whose size checks hold; this is determined once for each new shape, without values.
    """

    _class_name: str
    _graphs: dict[str, fx.Graph]
    _kept_out: tuple[str, ...]
    _modes: dict[str, Any]
    _mode: bool
    _waits: bool  # whether the graph that is set next gets its ``forward`` when that is first looked up
    # By id of a graph: the forward generated from it, and its source.
    _forwards: dict[int, tuple[Callable[..., Any], str]]

    def __init__(
        self,
        root: Mapping[str, Any],
        graphs: Graphs,
        *,
        class_name: str = "GraphModule",
        kept_out: Collection[str] = (),
        modes: Mapping[str, Any] | None = None,
        shared: Shared = (),
        later: bool = False,
    ) -> None:
        """``root`` holds modules and tensors by dotted name; ``kept_out`` names buffers not in the state dict.

        ``graphs``: as in :attr:`graphs`, with those names as targets. ``modes``: as in :attr:`modes`. ``shared``: see
        :func:`shared_names`. ``later``: whether ``forward`` is generated when it is first looked up.
        """
        # These are set first: a part with one of these names is then known to be hidden.
        own: dict[str, Any] = {"_class_name": class_name, "_graphs": dict(graphs), "_kept_out": tuple(kept_out)}
        own |= {"_modes": {"effects": {}, "flags": {}, "untraced": "", **(modes or {})}, "_mode": False}
        vars(self).update(own, _forwards={}, _chosen={}, _waits=later)
        super().__init__(root, graphs["eval"], class_name)
        for graph in self._graphs.values():
            if graph is not self._graph:
                self._replace_targets(graph)
        for name in kept_out:
            path, _, leaf = name.rpartition(".")
            attribute(self, path)._non_persistent_buffers_set.add(leaf)
        hold_under_all(self, shared)
        for path in self._modes["flags"]:
            if path and not is_held(self, path):
                hold(self, path, Parts())
        for name, graph in self._graphs.items():
            if "_" in name:
                self._forward_of(graph)

    @property
    def graphs(self) -> dict[str, fx.Graph]:
        """The graphs by mode, "eval" and maybe "training"; those of further specializations are "eval_1" and so on."""
        return dict(self._graphs)

    @property
    def named_graphs(self) -> dict[str, fx.Graph]:
        """Copies of :attr:`graphs` with the true names of modules and tensors as targets: data, not code."""
        return {name: self.with_names(graph) for name, graph in self._graphs.items()}

    @property
    def modes(self) -> dict[str, Any]:
        """How the network switches modes.

        ``"effects"``: the flags that ``train()`` and ``eval()`` of parts set (:mod:`fxprune.util.modes`). ``"flags"``:
        by path, the modes that a part must be in for the eval graph and for the training graph. ``"untraced"``: why
        there is no training graph, so that calls in training mode are refused; empty if nothing is missing.
        """
        return self._modes

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> PrunedGraphModule:
        """Convert or move all tensors. Constants keep their dtype: converting the original would not reach them."""
        constants = {name: buffer for name, buffer in self._buffers.items() if is_constant(name)}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in constants.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self

    def extra_repr(self) -> str:
        """The line that printing the network shows before its parts."""
        report = carried(self).get("report")
        return "" if report is None else f"pruned by fxprune: {report.achieved:.1%} of {report.budget} removed"

    def train(self, mode: bool = True) -> PrunedGraphModule:
        """Switch every submodule and select the graph; a later call in a mode without a graph raises ModeError."""
        return self._switched("train" if mode else "train(False)")

    def eval(self) -> PrunedGraphModule:
        """Switch to eval mode, as :meth:`train` does."""
        return self._switched("eval")

    def _switched(self, call: str) -> PrunedGraphModule:
        follow(self, call, self._modes["effects"].get("", {}))
        self._use_graph(CALLS[call])
        return self

    def set_modes(self, flags: Mapping[str, bool]) -> None:
        """Set the modes of the parts by path, and select the graph that fits them."""
        give_own_modes(self, self._modes["effects"])
        set_flags(self, flags)
        self._use_graph(self.training)

    def _use_graph(self, training: bool) -> None:
        """Select the graph that fits the modes of the parts; if both fit, or neither, the graph of ``training``."""
        fitting = self._fitting()
        self._mode = fitting[0] if len(fitting) == 1 else training
        wanted = self._graph_of(self._mode, 0)
        if self._graph is not wanted and id(wanted) in self._forwards:
            self._graph = wanted
            forward, self._code = self._forwards[id(wanted)]
            self._set_forward(forward)
        elif self._graph is not wanted:
            self.graph = wanted

    def _fitting(self) -> list[bool]:
        """The modes (False: eval, True: training) whose graphs fit the modes of the parts."""
        flags = [(attribute(self, path).training, pair) for path, pair in self._modes["flags"].items()]
        return [mode for mode in (False, True) if all(flag is pair[mode] for flag, pair in flags)]

    def _mode_in_force(self) -> bool:
        """The mode whose graph a call runs: the selected one, or the other if only that fits the modes of the parts."""
        fitting = self._fitting()
        if not fitting:
            self._check_mixture()
        return self._mode if self._mode in fitting or not fitting else fitting[0]

    def _check_mixture(self) -> None:
        """Raise ModeError for a mixture of modes without a graph, unless all modes have the same graph."""
        flags = {path: attribute(self, path).training for path in self._modes["flags"]}
        known = all(flags[path] in pair for path, pair in self._modes["flags"].items())
        if not known or len(self._graphs) > self._count():
            odd = next(p for p, pair in self._modes["flags"].items() if flags[p] is not pair[self.training])
            if why := self._modes["untraced"]:
                raise ModeError(
                    f"{odd or 'the network'} is in training mode, of which there is no graph ({why}): "
                    "call eval(), whose graph has gradients, too; or train the original, and prune it then"
                )
            raise ModeError(
                f"{odd or 'the network'} is in {'training' if flags[odd] else 'eval'} mode and other parts are not; "
                "train() and eval() of the original never set this mixture, and no graph was made for it: call train() "
                f"or eval() of the whole network, or let train() of the original set {odd or 'it'} so and prune again"
            )

    @property
    def _code(self) -> str:
        if "_code" not in vars(self):
            self.recompile()
        source: str = vars(self)["_code"]
        return source

    @_code.setter
    def _code(self, source: str) -> None:
        vars(self)["_code"] = source

    def recompile(self) -> Any:
        """Generate ``forward`` from the graph again."""
        if self._waits and len(self._graph.nodes):
            vars(self)["_waits"] = False
            self._replace_targets(self._graph)
            cls: Any = type(self)
            cls.forward = _Later(self)
            return None
        code = super().recompile()
        if len(self._graph.nodes):
            forward = type(self).forward
            self._forwards[id(self._graph)] = forward, self._code
            self._set_forward(forward)
        return code

    def _set_forward(self, forward: Callable[..., Any]) -> None:
        cls: Any = type(self)
        cls.forward = _choosing(forward) if self._count() > 1 or self._modes["flags"] else forward

    def forwards(self, present: Callable[..., Any]) -> list[Callable[..., Any]]:
        """The forwards of the current mode, one per specialization; ``present``: the one of the selected graph."""
        mode = self._mode_in_force()
        graphs = [self._graph_of(mode, number) for number in range(self._count())]
        if mode is self._mode:
            return [present, *map(self._forward_of, graphs[1:])]
        return list(map(self._forward_of, graphs))

    def _forward_of(self, graph: fx.Graph) -> Callable[..., Any]:
        if id(graph) not in self._forwards:
            self._replace_targets(graph)
            made = fx.GraphModule(self, copied_graph(graph))
            self._forwards[id(graph)] = type(made).forward, made.code
        return self._forwards[id(graph)][0]

    def for_sizes_of(self, *args: Any, **kwargs: Any) -> PrunedGraphModule:
        """A network over the same tensors that has, for each mode, only the graph for inputs of these sizes."""
        if self._count() == 1:
            return self
        number = self._number_for(args, kwargs)
        graphs = {mode: self.with_names(self._graph_of(mode == "training", number)) for mode in ("eval", "training")}
        if self._graph_of(True, number) is self._graph_of(False, number):
            del graphs["training"]
        names = {name: name for name in _all_targets(graphs)}
        return self._over_same_tensors(graphs, names, self._modes, flags_of(self))

    def plainly_named(self) -> PrunedGraphModule:
        """A network over the same tensors, under plain names that torch.export can write into code."""
        if not self._names:
            return self
        names, graphs = PlainNames(), self.named_graphs
        plain = {name: names.of(name) for name in _all_targets(graphs)}
        for node in (
            node for graph in graphs.values() for node in graph.nodes if node.op in ("call_module", "get_attr")
        ):
            node.target = plain[str(node.target)]
        by_path = {about: known for about, known in self._modes.items() if about != "untraced"}
        modes = {about: {names.of(path): value for path, value in known.items()} for about, known in by_path.items()}
        modes["untraced"] = self._modes["untraced"]
        flags = {names.of(path): mode for path, mode in flags_of(self).items()}
        return self._over_same_tensors(graphs, plain, modes, flags)

    def _over_same_tensors(
        self, graphs: Graphs, names: Mapping[str, str], modes: Mapping[str, Any], flags: Mapping[str, bool]
    ) -> PrunedGraphModule:
        """A network of other graphs over the modules and tensors in ``names``, which maps names here to names there."""
        root = {new: attribute(self, name) for name, new in names.items()}
        kept_out = [names[name] for name in self._kept_out if name in names]
        twin = PrunedGraphModule(root, graphs, class_name=self._class_name, kept_out=kept_out, modes=modes)
        twin.set_modes(flags)
        twin.meta = self.meta
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> PrunedGraphModule:
        graphs = self.named_graphs
        root = {name: copy.deepcopy(attribute(self, name), memo) for name in _all_targets(graphs)}
        twin = PrunedGraphModule(root, graphs, **self._options)
        reorder_like(twin, self)
        copy_plain_attributes(self, twin)
        twin.set_modes(flags_of(self))
        twin.meta = copy.deepcopy(self.meta, memo)
        return twin

    def __reduce__(self) -> Any:
        named = self.named_graphs
        root = {name: attribute(self, name) for name in _all_targets(named)}
        graphs = {name: graph_as_data(graph) for name, graph in named.items()}
        kinds = {path: type(part) for path, part in self.named_modules() if isinstance(part, Parts)}
        state = {"flags": flags_of(self), "meta": self.meta, "order": _order(self), "kinds": kinds}
        return _unpickled, (root, graphs, self._options, {**state, "extras": _extras(self)})

    @property
    def _options(self) -> dict[str, Any]:
        about = {"class_name": self._class_name, "kept_out": self._kept_out, "modes": self._modes}
        return {**about, "shared": shared_names(self)}

    def _count(self) -> int:
        return sum(name.startswith("eval") for name in self._graphs)

    def _graph_of(self, training: bool, number: int) -> fx.Graph:
        plain = self._graphs[graph_name(False, number)]
        return self._graphs.get(graph_name(True, number), plain) if training else plain

    def _number_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """The number of the specialization that takes inputs of these sizes."""
        first = type(self).forward.__wrapped__  # type: ignore[attr-defined]
        return number_of_forward(self, self.forwards(first), args, kwargs)


class _Later:
    """Stands for a network's ``forward`` until somebody looks that up: many are saved or cut again before any call."""

    def __init__(self, network: PrunedGraphModule) -> None:
        self._network = weakref.ref(network)

    def __get__(self, network: PrunedGraphModule | None, cls: type) -> Any:
        made = self._network() if network is None else network
        if made is None:
            return nn.Module.forward
        made.recompile()
        return type(made).forward if network is None else made.forward


def carried(network: nn.Module) -> dict[str, Any]:
    """What a network carries besides its tensors: its ``report`` and ``sample``; empty if fxprune did not make it."""
    found: dict[str, Any] = getattr(network, "meta", {}).get("fxprune", {})
    return found


def _choosing(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of a network with several graphs: runs the one that fits the modes and the inputs."""

    @functools.wraps(forward)
    def chosen(self: PrunedGraphModule, *args: Any, **kwargs: Any) -> Any:
        forwards = self.forwards(forward)
        number = number_of_forward(self, forwards, args, kwargs) if len(forwards) > 1 else 0
        return forwards[number](self, *args, **kwargs)

    return chosen


def graph_name(training: bool, specialization: int) -> str:
    """The name of a graph among :attr:`PrunedGraphModule.graphs`."""
    return ("training" if training else "eval") + (f"_{specialization}" if specialization else "")


def _unpickled(
    root: dict[str, Any], graphs: dict[str, Any], options: dict[str, Any], state: dict[str, Any]
) -> PrunedGraphModule:
    built = {name: graph_from_data(graph) for name, graph in graphs.items()}
    module = PrunedGraphModule(root, built, **options)
    for name in state["order"]:
        _move_last(module, name)
    for path, kind in state["kinds"].items():
        object.__setattr__(attribute(module, path), "__class__", kind)
    module.meta = state["meta"]
    for name, value in state["extras"].items():
        setattr(module, name, value)
    module.set_modes(state["flags"])
    return module


def copy_plain_attributes(source: nn.Module, target: nn.Module) -> None:
    """Copy plain attributes that code around a module may read, such as a number of output channels."""
    for name, value in _extras(source).items():
        if name not in vars(target):
            setattr(target, name, copy.deepcopy(value))


def _extras(module: nn.Module) -> dict[str, Any]:
    own = {"training", "meta", "_kept_out"}
    plain = {n: v for n, v in vars(module).items() if not n.startswith("_") and n not in own}
    return {n: v for n, v in plain.items() if not isinstance(v, (torch.Tensor, nn.Module, fx.Graph))}


def _order(module: nn.Module) -> list[str]:
    """The names of all submodules, parameters and buffers, in the order in which the module holds them."""
    modules = module.named_modules()
    return [f"{p}.{n}".lstrip(".") for p, m in modules for n in (*m._modules, *m._parameters, *m._buffers)]


def _move_last(module: nn.Module, name: str) -> None:
    path, _, leaf = name.rpartition(".")
    parent = attribute(module, path)
    for held in (parent._modules, parent._parameters, parent._buffers):
        if leaf in held:
            held[leaf] = held.pop(leaf)


def _all_targets(graphs: Graphs) -> list[str]:
    return list(dict.fromkeys(name for graph in graphs.values() for name in _targets(graph)))


def _targets(graph: fx.Graph) -> list[str]:
    return [str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")]


def reorder_like(module: nn.Module, like: nn.Module) -> None:
    """Put submodules, parameters and buffers in the order of ``like``, because optimiser state goes by order.

    Replacements of its containers become of the same kind.
    """
    if type(module) is Parts:
        object.__setattr__(module, "__class__", parts_like(like))  # a part may be named __class__
    for held, order in (
        (module._modules, like._modules),
        (module._parameters, like._parameters),
        (module._buffers, like._buffers),
    ):
        if list(held) == list(order):
            continue
        ranks = {name: rank for rank, name in enumerate(order)}
        for name in sorted(held, key=lambda n: ranks.get(n, len(ranks))):
            held[name] = held.pop(name)  # type: ignore[assignment]
    for name, child in module._modules.items():
        twin = like._modules.get(name)
        if child is not None and twin is not None:
            reorder_like(child, twin)
