"""The latency model of one network: its operations run once as they are, its contractions on a grid of widths."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import fx, nn

from fxprune.analysis import ChannelGraph, owner_of
from fxprune.capture import Captured
from fxprune.copying import deep_copy
from fxprune.errors import BudgetError
from fxprune.groups import Term
from fxprune.latency.comparing import cloned
from fxprune.latency.model import LatencyModel, ShapedOp
from fxprune.latency.profiling import Seen, profile
from fxprune.latency.shapes import ShapedCall, shaped_call
from fxprune.latency.surfaces import MOST_WIDTHS, Surface, measured_surface
from fxprune.latency.table import LatencyTable
from fxprune.memory import paired_axes
from fxprune.model_paths import ModelPaths
from fxprune.samples import Sample

__all__ = ["measured_latency"]

_EMPTY_CALL = "nothing: relu of one element"


class Counted(Protocol):
    """Goes over items with a progress bar."""

    def __call__(self, name: str, items: Iterable[Any], total: int | None) -> Iterator[Any]:
        """The items one by one."""
        ...


def measured_latency(
    graph: ChannelGraph, model: nn.Module, sample: Sample, counted: Counted, table: LatencyTable | None = None
) -> LatencyModel:
    """The latency of a network in eval mode by its widths, timed by eager torch on the device and threads of now.

    Args:
        graph: the analysed network.
        model: the network; copies of it are run.
        sample: one call's arguments, for which the latency is.
        counted: shows what is being done.
        table: what was timed before; by default that of this machine.

    Raises:
        BudgetError: the network has no values, or cannot be run.
    """
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    if device.type == "meta" or any(tensor.is_meta for tensor in sample.tensors):
        raise BudgetError('budget="latency" times the network, and one on the meta device cannot be run')
    table = table or LatencyTable.of_this_machine(device)
    try:
        return _Measuring(graph, model, device, table).run(sample, counted)
    finally:
        table.save()


class _Measuring:
    def __init__(self, graph: ChannelGraph, model: nn.Module, device: torch.device, table: LatencyTable) -> None:
        self.graph = graph
        self.model = model
        self.device = device
        self.table = table
        self.paths = ModelPaths(model)
        self.linear: list[Term] = []
        self.shaped: list[ShapedOp] = []
        self._surfaces: dict[str, Surface | None] = {}

    def run(self, sample: Sample, counted: Counted) -> LatencyModel:
        main = self.graph.captured
        parts = [] if "" in main.opaque else [(main, sample)]
        parts += [(island, island.sample.with_values()) for island in main.islands]
        seen = [(part, n, s) for part, values in parts for n, s in self._profiled(part, values).items()]
        # What the interpreter's clock sees of an operation that does nothing.
        idle = self.table.seconds(_EMPTY_CALL, lambda: lambda: torch.relu(torch.zeros(1, device=self.device)))
        for part, node, found in counted("timing operations", seen, len(seen)):
            self._add(node, found, part.calls, idle)
        return LatencyModel(self.linear, self.shaped)

    def _profiled(self, part: Captured, sample: Sample) -> dict[fx.Node, Seen]:
        """Every operation of a part with its seconds, which are those of the table where it has them."""
        try:
            copy = deep_copy(part.module(self.model), cloned).eval()
            assert isinstance(copy, fx.GraphModule)
            values = sample.map(lambda tensor: tensor.to(self.device))
            found = profile(copy, list(part.graph.nodes), values, lambda key: self.table.known(key) is not None)
        except Exception as error:  # the network's own code: anything may come out of it
            raise BudgetError(
                f'budget="latency" runs the network operation by operation, and that failed ({error!s:.200}): '
                "choose another budget"
            ) from error
        self._settle(list(found.values()))
        return found

    def _settle(self, found: list[Seen]) -> None:
        """Equal calls take equally long, and what the table knows stays, so that a plan can be made again."""
        least: dict[str, float] = {}
        for seen in found:
            least[seen.key] = min(seen.seconds, least.get(seen.key, math.inf))
        for seen in found:
            known = self.table.known(seen.key)
            if known is None:
                self.table.note(seen.key, known := least[seen.key])
            seen.seconds = known

    def _add(self, node: fx.Node, seen: Seen, calls: int, idle: float) -> None:
        owner = owner_of(node)
        terms: Iterable[Term] = self.graph.mac_terms.get(node, ())
        if terms:
            call = self._shaped(node, seen)
            surface = None if call is None else self._surface(call)
            if call is not None and surface is not None:
                self.shaped.append(ShapedOp(owner, call.axes, surface, calls))
                return
        else:
            terms = self._bytes(node)
        self._add_linear(owner, seen.seconds * calls, terms, idle * calls)

    def _shaped(self, node: fx.Node, seen: Seen) -> ShapedCall | None:
        call = self.graph.calls[node]
        found = shaped_call(call, self.graph.solver.resolve, seen.arguments, self._dtype_of)
        return found if found is not None and len(found.axes) <= MOST_WIDTHS else None

    def _surface(self, call: ShapedCall) -> Surface | None:
        """The surface of a kernel; None where torch does not take the call as it is written here."""
        key = f"{call.kernel(call.full).key} by {call.full}"
        if key not in self._surfaces:
            try:
                self._surfaces[key] = measured_surface(call.full, self._timed(call))
            except (LookupError, TypeError, RuntimeError):
                self._surfaces[key] = None
        return self._surfaces[key]

    def _timed(self, call: ShapedCall) -> Callable[[tuple[int, ...]], float]:
        def seconds(widths: tuple[int, ...]) -> float:
            kernel = call.kernel(widths)
            with torch.no_grad():
                return self.table.seconds(kernel.key, lambda: kernel.prepared(self.device))

        return seconds

    def _add_linear(self, owner: str, seconds: float, terms: Iterable[Term], idle: float) -> None:
        """What is above an idle call's time grows with ``terms``, bytes that are moved or multiply-accumulates."""
        terms = list(terms)
        full = sum(t.coefficient * math.prod(axis.size for axis in t.axes) for t in terms)
        rest = max(seconds - idle, 0.0) / full if full else 0.0
        self.linear.append(Term(owner, seconds if not full else min(seconds, idle), ()))
        self.linear.extend(Term(owner, rest * t.coefficient, t.axes) for t in terms if rest)

    def _bytes(self, node: fx.Node) -> Iterator[Term]:
        resolve = self.graph.solver.resolve
        for place in (*node.all_input_nodes, node):
            for tensor, axes in paired_axes(place.meta.get("val"), self.graph.axes.get(place)):
                yield Term("", tensor.element_size(), tuple(map(resolve, axes)))

    def _dtype_of(self, name: str) -> torch.dtype:
        value = self.graph.constants.get(name)
        found: torch.dtype = (self.paths.attribute(name) if value is None else value).dtype
        return found
