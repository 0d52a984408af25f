"""Memory as a cost: the bytes of the parameters plus the peak bytes of live activations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import FloatArray
from fxprune.axes.expressions import Axis, Term
from fxprune.cost.budgets import CostModel, budget
from fxprune.util.copies import tensors_in

_DEPTH = 16  # of nested containers


@dataclass(frozen=True, slots=True)
class LiveTerm:
    """The bytes of one activation, and the first and last step of the forward at which it is alive."""

    term: Term
    first: int
    last: int


class MemoryModel(CostModel):
    """The bytes of all parameters plus the most bytes of activations that are alive at once.

    An activation is alive from the step that makes it to the last one that reads it or a view of it. The workspace of
    kernels and the reserve of the allocator are not counted.
    """

    def __init__(self, parameters: Iterable[Term], live: Iterable[LiveTerm]) -> None:
        parameters, live = tuple(parameters), tuple(live)
        self._count = len(parameters)
        self._first = np.array([item.first for item in live], dtype=np.intp)
        self._after = np.array([item.last + 1 for item in live], dtype=np.intp)
        self._steps = int(self._after.max(initial=0)) + 1
        super().__init__([*parameters, *(item.term for item in live)])

    def evaluate(self, leaf_values: FloatArray) -> float:
        """The bytes at the given sizes of :attr:`leaves`."""
        values = self._terms.products(self._nodes(leaf_values))
        change = np.zeros(self._steps, dtype=np.float64)
        np.add.at(change, self._first, values[self._count :])
        np.subtract.at(change, self._after, values[self._count :])
        return float(values[: self._count].sum() + change.cumsum().max(initial=0.0))


@budget("memory")
def memory_model(graph: ChannelGraph) -> MemoryModel:
    """The bytes of the parameters plus the peak bytes of live activations, for the given sample."""
    weights = (Term(t.owner, graph.bytes.get(t.owner, 4) * t.coefficient, t.axes) for t in graph.params)
    graphs = (captured.graph for captured in (graph.captured, *graph.captured.islands))
    return MemoryModel(weights, live_terms(graphs, graph.axes, graph.solver.resolve, graph.batch_scale))


def live_terms(graphs: Iterable[fx.Graph], axes: Mapping[fx.Node, Any], resolve: Any, scale: float) -> list[LiveTerm]:
    """The activations of graphs that run one after another.

    ``axes`` are those of every node's result; ``resolve`` resolves an axis; ``scale`` is the batch of the user's sample
    as a fraction of the batch that was traced.
    """
    found: list[LiveTerm] = []
    start = 0
    for graph in graphs:
        nodes = list(graph.nodes)
        held = {n: [_storage(t) for t in tensors_in(n.meta.get("val"), _DEPTH)] for n in nodes}
        last = {storage: step for step, n in enumerate(nodes) for given in n.all_input_nodes for storage in held[given]}
        # A view of a parameter takes no memory of its own.
        made = {storage for node in nodes if node.op == "get_attr" for storage in held[node]}
        for step, node in enumerate(nodes):
            shown = () if node.op in ("get_attr", "output") else paired_axes(node.meta.get("val"), axes.get(node))
            for number, (tensor, tensor_axes) in enumerate(shown):
                storage = _storage(tensor)
                if storage in made:
                    continue
                made.add(storage)
                term = Term(f"{node.name}.{number}", scale * tensor.element_size(), tuple(map(resolve, tensor_axes)))
                found.append(LiveTerm(term, start + step, start + max(step, last.get(storage, step))))
        start += len(nodes)
    return found


def paired_axes(value: Any, axes: Any) -> Iterator[tuple[torch.Tensor, tuple[Axis, ...]]]:
    """Every tensor of a node's value with its axes."""
    if isinstance(value, torch.Tensor) and axes is not None:
        yield value, axes
    elif isinstance(value, (list, tuple)) and axes is not None:
        for item, item_axes in zip(value, axes, strict=True):
            yield from paired_axes(item, item_axes)
    elif isinstance(value, dict) and axes is not None:
        for key, item in value.items():
            yield from paired_axes(item, axes[key])


def _storage(tensor: torch.Tensor) -> int:
    # Views of one tensor share its storage, also on the meta device; sparse tensors have none.
    return int(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else id(tensor)
