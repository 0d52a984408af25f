"""Runs the unpruned network operation by operation, and records the arguments and the time of each."""

from __future__ import annotations

import functools
import inspect
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.analysis.solving import ChannelGraph, owner_of
from fxprune.axes.expressions import Term
from fxprune.capture import Captured
from fxprune.capture.samples import Sample
from fxprune.cost.latency import MOST_WIDTHS, LatencyModel, LatencyTable, ShapedOp, Surface, measured_surface
from fxprune.cost.memory import paired_axes
from fxprune.cost.shapes import ShapedCall, TensorSpec, shaped_call
from fxprune.errors import BudgetError
from fxprune.util.copies import cloned, deep_copy
from fxprune.util.paths import ModelPaths, device_of
from fxprune.util.progress import Steps

_ROUNDS = 5


@dataclass
class ProfiledOp:
    """One operation in a run: the call as text, the values it reads, its result, and its minimum seconds."""

    key: str
    arguments: dict[fx.Node, Any]
    result: Any
    seconds: float = float("inf")


def profile(
    module: fx.GraphModule, nodes: Sequence[fx.Node], sample: Sample, known: Callable[[str], bool]
) -> dict[fx.Node, ProfiledOp]:
    """Run a private copy: the arguments of every operation, and its seconds unless all keys are ``known``.

    ``nodes``: the nodes of the graph that was copied; they key the result.
    """
    runner = _Runner(module, dict(zip(module.graph.nodes, nodes, strict=True)))
    with torch.no_grad():
        runner.call(sample)
        if not all(known(seen.key) for seen in runner.seen.values()):
            for _ in range(_ROUNDS):
                runner.call(sample)
    return runner.seen


class _Runner(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, originals: dict[fx.Node, fx.Node]) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.seen: dict[fx.Node, ProfiledOp] = {}
        self._originals = originals
        self._elapsed = float("inf")

    def call(self, sample: Sample) -> None:
        sample = sample.map(torch.clone)  # a network may write to its input
        bound = inspect.signature(self.module.forward).bind(*sample.args, **sample.kwargs)
        bound.apply_defaults()
        self.run(*bound.arguments.values())

    def run_node(self, n: fx.Node) -> Any:
        if n.op not in ("call_function", "call_method", "call_module"):
            return super().run_node(n)
        original = self._originals[n]
        first = original not in self.seen
        if first:
            arguments = {self._originals[a]: _specified(self.env[a]) for a in n.all_input_nodes}
            key = self._key(n)
        result = super().run_node(n)
        if first:
            # The first run warms up: it is not timed.
            self.seen[original] = ProfiledOp(key, arguments, _specified(result))
        else:
            self.seen[original].seconds = min(self.seen[original].seconds, self._elapsed)
        return result

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._timed(super().call_function, target, args, kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._timed(super().call_method, target, args, kwargs)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._timed(super().call_module, target, args, kwargs)

    def _timed(self, call: Callable[..., Any], target: Any, args: Any, kwargs: Any) -> Any:
        wait = torch.cuda.synchronize if torch.cuda.is_available() else None
        if wait is not None:
            wait()
        started = time.perf_counter()
        result = call(target, args, kwargs)
        if wait is not None:
            wait()
        self._elapsed = time.perf_counter() - started
        return result

    def _key(self, n: fx.Node) -> str:
        args, kwargs = pytree.tree_map(
            lambda value: str(_specified(self.env[value])) if isinstance(value, fx.Node) else value, (n.args, n.kwargs)
        )
        name = getattr(n.target, "__name__", str(n.target))
        if n.op == "call_module":
            module = self.fetch_attr(str(n.target))
            name = f"{type(module).__name__}({module.extra_repr()})"
        return f"{name}{args}{kwargs or ''}"


def _specified(value: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda t: _Strided(tuple(t.shape), t.dtype, tuple(t.stride())), value)


@dataclass(frozen=True, slots=True)
class _Strided(TensorSpec):
    """A specification with strides, because the time of an element-wise operation depends on them."""

    strides: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{TensorSpec.__str__(self)}/{','.join(map(str, self.strides))}"


# To compare two networks: the total seconds of their calls, the number of warm-up calls, and the fewest timed ones.
_SECONDS, _WARM_UP, _FEWEST = 1.0, 2, 3
_EMPTY_CALL = "nothing: relu of one element"


def measured_latency(
    graph: ChannelGraph, model: nn.Module, sample: Sample, steps: Steps, table: LatencyTable | None = None
) -> LatencyModel:
    """The latency of a network by its widths: copies in eval mode, timed eagerly on the current device and threads.

    ``steps`` shows the progress; ``table`` has earlier timings, by default those of this machine. Raises BudgetError:
    the network is on the meta device, or cannot be run.
    """
    device = device_of(model)
    if device.type == "meta" or any(tensor.is_meta for tensor in sample.tensors):
        raise BudgetError('budget="latency" times the network, and one on the meta device cannot be run')
    table = table or LatencyTable.of_this_machine(device)
    try:
        return _Measuring(graph, model, device, table).run(sample, steps)
    finally:
        table.save()


class _Measuring:
    def __init__(self, graph: ChannelGraph, model: nn.Module, device: torch.device, table: LatencyTable) -> None:
        self.graph = graph
        self.model = model
        self.device = device
        self.table = table
        self.paths = ModelPaths(model, graph.constants)
        self.linear: list[Term] = []
        self.shaped: list[ShapedOp] = []
        self._surfaces: dict[str, Surface | None] = {}

    def run(self, sample: Sample, steps: Steps) -> LatencyModel:
        main = self.graph.captured
        parts = [] if "" in main.opaque else [(main, sample)]
        parts += [(island, island.sample.with_values()) for island in main.islands]
        seen = [(part, n, s) for part, values in parts for n, s in self._profiled(part, values).items()]
        # The interpreter's overhead: the time of an operation that does almost nothing.
        idle = self.table.seconds(_EMPTY_CALL, lambda: lambda: torch.relu(torch.zeros(1, device=self.device)))
        for part, node, found in steps.counted("timing operations", seen, len(seen)):
            self._add(node, found, part.calls, idle)
        return LatencyModel(self.linear, self.shaped)

    def _profiled(self, part: Captured, sample: Sample) -> dict[fx.Node, ProfiledOp]:
        """Every operation of a part with its seconds, taken from the table if it has them."""
        try:
            copy = deep_copy(part.module(self.model), cloned).eval()
            assert isinstance(copy, fx.GraphModule)
            values = sample.map(lambda tensor: tensor.to(self.device))
            found = profile(copy, list(part.graph.nodes), values, lambda key: self.table.known(key) is not None)
        except Exception as error:  # the network's own code may raise anything
            raise BudgetError(
                f'budget="latency" runs the network operation by operation, and that failed ({error!s:.200}): '
                "choose another budget"
            ) from error
        self._use_known_times(list(found.values()))
        return found

    def _use_known_times(self, found: list[ProfiledOp]) -> None:
        """Give equal calls equal times, and keep times that the table has, so that plans are reproducible."""
        least: dict[str, float] = {}
        for seen in found:
            least[seen.key] = min(seen.seconds, least.get(seen.key, math.inf))
        for seen in found:
            known = self.table.known(seen.key)
            if known is None:
                self.table.note(seen.key, known := least[seen.key])
            seen.seconds = known

    def _add(self, node: fx.Node, seen: ProfiledOp, calls: float, idle: float) -> None:
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

    def _shaped(self, node: fx.Node, seen: ProfiledOp) -> ShapedCall | None:
        call = self.graph.calls[node]
        resolve, tensor = self.graph.solver.resolve, self.paths.attribute
        found = shaped_call(call, resolve, seen.arguments, lambda name: tensor(name).dtype)
        return found if found is not None and len(found.axes) <= MOST_WIDTHS else None

    def _surface(self, call: ShapedCall) -> Surface | None:
        """The surface of a kernel; None if torch does not accept the call as reconstructed here."""
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
        """Let the time above that of an idle call grow with ``terms``: bytes moved, or multiply-accumulates."""
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


Prepared = Callable[[], object]


def timed_alternately(calls: Sequence[Prepared], seconds: float) -> list[list[float]]:
    """Time ``calls`` in turns, each at least three times, for ``seconds`` in total; the seconds of each call."""
    for call in [*calls] * _WARM_UP:
        call()
    times: list[list[float]] = [[] for _ in calls]
    while sum(map(sum, times)) < seconds or len(times[0]) < _FEWEST:
        for call, found in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            found.append(time.perf_counter() - started)
    return times


def compared(original: nn.Module, pruned: nn.Module, sample: Sample) -> tuple[float, float, int]:
    """The median seconds of a call of each network, and how many calls were timed: copies in eval mode, in turns.

    Raises whatever the user's own code raises while it is copied or run.
    """
    networks = [deep_copy(network, cloned).eval() for network in (original, pruned)]
    values = sample.with_values()
    with torch.no_grad():
        times = timed_alternately([functools.partial(values.call, network) for network in networks], _SECONDS)
    before, after = map(statistics.median, times)
    return before, after, len(times[0])
