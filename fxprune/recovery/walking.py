"""A graph run node by node over all calibration batches, so that layers can be changed on the way; values inside it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.calibration.balance import floating_tensors
from fxprune.calibration.batches import fitting
from fxprune.capture.samples import Sample
from fxprune.util.paths import PartsModule, attribute, copied_graph


class Walk:
    """One network over all batches. Values live from the node that computes them to the last node that reads them.

    Args:
        module: holds the modules and tensors that the graph uses, in eval mode.
        graph: the graph.
        batches: one sample for each batch.
        held: nodes whose values are copied when the node has run, and kept until :meth:`held` takes them.
    """

    def __init__(
        self, module: nn.Module, graph: fx.Graph, batches: Sequence[Sample], held: Iterable[fx.Node] = ()
    ) -> None:
        self._interpreter = fx.Interpreter(module, garbage_collect_values=False, graph=graph)
        self._nodes = list(graph.nodes)
        self._ranks = {node: rank for rank, node in enumerate(self._nodes)}
        self._done = _last_reads(self._nodes)
        self._held = set(held)
        self._taken: list[dict[fx.Node, Any]] = [{} for _ in batches]
        self._values: list[dict[fx.Node, Any]] = [inputs_of(self._nodes, sample) for sample in batches]
        self._next, self._samples = [0 for _ in batches], batches

    def __len__(self) -> int:
        """The number of batches."""
        return len(self._values)

    def before(self, batch: int, node: fx.Node) -> dict[fx.Node, Any]:
        """Run a batch up to ``node``, but not ``node`` itself; return the values that are alive."""
        values = self._values[batch]
        self._interpreter.env = values
        while self._next[batch] < self._ranks[node]:
            self._step(batch, values)
        return values

    def held(self, batch: int, node: fx.Node) -> Tensor:
        """Run a batch past ``node``, one of the held nodes, and return its value, which is then dropped."""
        values = self.before(batch, node)
        if self._next[batch] == self._ranks[node]:
            self._step(batch, values)
        found: Tensor = self._taken[batch].pop(node)
        return found

    def peek(self, batch: int, node: fx.Node) -> Tensor:
        """The value of a node; one that has not run is computed on the side, without changing the walk."""
        values = self._values[batch]
        if node in values:
            found: Tensor = values[node]
            return found
        ahead = cone(node, values)
        scratch = {n: _copied(values[n]) for m in ahead for n in m.all_input_nodes if n in values}
        self._interpreter.env = scratch
        for step in sorted(ahead, key=self._ranks.__getitem__):
            scratch[step] = self._interpreter.run_node(step)
        last: Tensor = scratch[node]
        return last

    def _step(self, batch: int, values: dict[fx.Node, Any]) -> None:
        node = self._nodes[self._next[batch]]
        if node.op not in ("placeholder", "output"):
            with fitting(self._samples[batch]):
                values[node] = self._interpreter.run_node(node)
        if node in self._held:
            self._taken[batch][node] = _copied(values[node])
        for read in self._done[node]:
            values.pop(read, None)
        self._next[batch] += 1


def cone(node: fx.Node, known: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes that must run to compute ``node``, given the nodes with known values."""
    found: set[fx.Node] = set()
    stack = [node]
    stop = set(known)
    while stack:
        top = stack.pop()
        if top not in stop and top not in found:
            found.add(top)
            stack.extend(top.all_input_nodes)
    return found


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in eval mode, without gradients; afterwards every submodule is back in its own mode."""
    modes = {part: part.training for part in module.modules()}
    try:
        with torch.no_grad():
            module.eval()
            yield
    finally:
        module.train(modes[module])
        for part, mode in modes.items():
            part.training = mode


def _last_reads(nodes: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """For each node, the values that no later node reads."""
    done: dict[fx.Node, list[fx.Node]] = {node: [] for node in nodes}
    seen: set[fx.Node] = set()
    for node in reversed(nodes):
        for read in (node, *node.all_input_nodes):
            if read not in seen:
                seen.add(read)
                done[node].append(read)
    return done


def inputs_of(nodes: Sequence[fx.Node], sample: Sample) -> dict[fx.Node, Any]:
    """The placeholders' values for one call."""
    places = [node for node in nodes if node.op == "placeholder"]
    bound = _signature(places).bind(*sample.args, **sample.kwargs)
    bound.apply_defaults()
    # A network may write to its input, but the data belong to the caller.
    return {place: _copied(bound.arguments[str(place.target).lstrip("*")]) for place in places}


def _signature(places: Sequence[fx.Node]) -> inspect.Signature:
    kinds = {0: inspect.Parameter.POSITIONAL_OR_KEYWORD, 1: inspect.Parameter.VAR_POSITIONAL}
    parameters = []
    for place in places:
        name = str(place.target)
        stars = len(name) - len(name.lstrip("*"))
        kind = kinds.get(stars, inspect.Parameter.VAR_KEYWORD)
        default = place.args[0] if place.args and stars == 0 else inspect.Parameter.empty
        parameters.append(inspect.Parameter(name.lstrip("*"), kind, default=default))
    return inspect.Signature(parameters)


def _copied(value: Any) -> Any:
    return pytree.tree_map_only(Tensor, torch.clone, value)


def watched(module: nn.Module, graph: fx.Graph, watched: Sequence[fx.Node]) -> nn.Module:
    """A module over the same tensors that returns the values of some nodes of its graph, and its output."""
    twin = copied_graph(graph)
    twins = dict(zip(graph.nodes, twin.nodes, strict=True))
    (end,) = twin.find_nodes(op="output")
    end.args = (([twins[node] for node in watched], end.args[0]),)
    names = [str(node.target) for node in twin.nodes if node.op in ("call_module", "get_attr")]
    return PartsModule({name: attribute(module, name) for name in names}, twin, "Watched")


def values_of(network: nn.Module, sample: Sample) -> tuple[list[Tensor], list[Tensor]]:
    """The values of the watched nodes, and the floating-point outputs."""
    found, output = sample.map(torch.clone).call(partial(nn.Module.__call__, network))
    return found, floating_tensors(output)
