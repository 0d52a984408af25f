"""Runs a private copy of a network over calibration data, and shows values of its nodes to statistics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.analysis.solving import ChannelGraph
from fxprune.calibration.balance import Balance, Census, Weights
from fxprune.calibration.batches import Batch, Calibration, Loss, default_loss, describe_value, fitting
from fxprune.calibration.statistic import Parameter, Place, Seen, Statistic, Tap, add_over_ranks, ranks
from fxprune.capture import Captured
from fxprune.capture.samples import Sample
from fxprune.cost.budgets import budget_model
from fxprune.errors import CalibrationError, FxpruneError, described
from fxprune.rules.call import Call
from fxprune.util.copies import cloned, deep_copy
from fxprune.util.progress import Steps

# The bytes of live values that fit a processor's cache, and the least number of samples to run together.
_CACHE, _FEWEST_TOGETHER = 8 << 20, 16


@dataclass(frozen=True, eq=False)
class Observation:
    """A statistic, and the place at which it is taken."""

    place: Place
    statistic: Statistic


def norm_after(node: fx.Node, calls: Mapping[fx.Node, Call]) -> fx.Node | None:
    """The batch norm that is the only reader of a node, else None."""
    user = _only_user(node)
    call = calls.get(user) if user is not None else None
    return user if call is not None and call.name == "batch_norm" and call.arguments["input"] is node else None


def addition_after(node: fx.Node, calls: Mapping[fx.Node, Call]) -> tuple[fx.Node, fx.Node] | None:
    """The addition of two activations of one shape that is the only reader of a node, and its other summand."""
    user = _only_user(node)
    call = calls.get(user) if user is not None else None
    if user is None or call is None or call.name != "add" or call.arguments.get("alpha", 1) != 1:
        return None
    summands = [call.arguments["input"], call.arguments["other"]]
    others = [s for s in summands if isinstance(s, fx.Node) and s is not node]
    if len(others) != 1 or call.shape_of(others[0]) != call.shape_of(node):
        return None
    return user, others[0]


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


Watcher = Callable[[Tensor], None]
Watched = tuple[fx.Node, fx.Node | None]
"""A node, or one user's reading of it."""


class _Watch(nn.Module):
    """Passes the value of one node, or one user's reading of it, to the watching functions."""

    def __init__(self, watchers: list[Watcher], apart: bool) -> None:
        super().__init__()
        self._watchers = watchers
        self._apart = apart

    def forward(self, value: Tensor) -> Tensor:
        # A view gets the gradient of this reading alone.
        seen = value.view_as(value) if self._apart else value
        for watcher in self._watchers:
            watcher(seen)
        return seen


class PrivateNetwork:
    """The captured network over its own copies of tensors, in eval mode; it never changes the caller's model.

    Args:
        graph: the channel graph.
        model: the caller's model; it is not changed.
        watched: nodes of the captured graphs, or a user's reading of one, with the functions that get the value.

    Raises:
        CalibrationError: the model cannot be copied.
    """

    def __init__(
        self, graph: ChannelGraph, model: nn.Module, watched: Mapping[Watched, list[Watcher]] | None = None
    ) -> None:
        self._watched = watched or {}
        try:
            copied = deep_copy(model, cloned).eval()
        except Exception as error:  # deepcopy runs the user's own code, which may raise anything
            raise CalibrationError(
                f"{type(model).__name__} cannot be copied, and statistics are taken on a copy ({described(error)})"
            ) from error
        self.parameters: dict[str, Tensor] = dict(copied.named_parameters())
        self.buffers: dict[str, Tensor] = dict(copied.named_buffers())  # and the constants of the graphs
        for island in graph.captured.islands:
            path, _, name = island.prefix.removesuffix(".").rpartition(".")
            setattr(copied.get_submodule(path), name, self._opened(island, copied))
        self.module = copied if "" in graph.captured.opaque else self._opened(graph.captured, copied)

    def run(self, sample: Sample) -> Any:
        """The output of one call. Raises CalibrationError: the network fails."""
        # Called directly, a GraphModule whose code raises would print to the terminal and drop the traceback.
        with fitting(sample):
            return sample.call(partial(nn.Module.__call__, self.module))

    def _opened(self, captured: Captured, model: nn.Module) -> nn.Module:
        constants = {name: tensor.clone() for name, tensor in captured.constants.items()}
        self.buffers |= constants
        module = replace(captured, constants=constants).module(model).eval()
        assert isinstance(module, fx.GraphModule)
        originals = [node for node in captured.graph.nodes if node.op != "output"]
        copies = dict(zip(originals, list(module.graph.nodes), strict=False))
        for number, ((node, reader), watchers) in enumerate(self._watched.items()):
            if node in copies:
                self._watch(module, copies[node], copies[reader] if reader else None, watchers, number)
        module.recompile()
        return module

    def _watch(
        self, module: fx.GraphModule, node: fx.Node, reader: fx.Node | None, watchers: list[Watcher], number: int
    ) -> None:
        name = f"_fxprune_watch{number}"
        module.add_module(name, _Watch(watchers, apart=reader is not None))
        after = node if reader is None else reader.prev
        with module.graph.inserting_after(after):
            watch = module.graph.call_module(name, (node,))
        if reader is not None:
            reader.replace_input_with(node, watch)


@dataclass(eq=False)
class Collector:
    """Runs a network over calibration data.

    The caller's model is not changed: a private copy runs, in eval mode, on the model's device. With an initialised
    ``torch.distributed``, every rank feeds its own shard, and the sums equal those of one process over all data.
    """

    graph: ChannelGraph  # the channel graph
    model: nn.Module  # the caller's model
    calibration: Calibration  # the data
    loss: Loss | None = None  # maps output and target to the mean over the batch; cross-entropy by default
    steps: Steps = field(default_factory=lambda: Steps(False))  # shows progress
    seed: int = 0  # the seed of random numbers drawn by the network or the data

    def collect(self, observations: Sequence[Observation]) -> None:
        """Update all statistics in one pass over the data, then sum them over the ranks.

        Raises:
            CalibrationError: data or target do not fit; see :class:`Calibration` and
                :func:`~fxprune.calibration.batches.default_loss`.
        """
        # One statistic may be taken at several places.
        statistics = list({id(o.statistic): o.statistic for o in observations}.values())
        kinds = {(getattr(s, "balanced", False), s.needs) for s in statistics}
        fresh = not any(bool(held.any()) for s in statistics for held in s.sums())
        if kinds == {(True, "value")} and fresh and self._is_countable:
            # In most networks all positions count alike; there, one pass is enough for the classes and the statistics.
            self._count(observations)
            if self.calibration.balance is not None:
                for held in (held for s in statistics for held in s.sums()):
                    held.zero_()
                self._run(observations)
        else:
            if any(balanced for balanced, _ in kinds):
                self.balance()
            self._run(observations)
        add_over_ranks(t for s in statistics for t in s.sums())

    def _run(self, observations: Sequence[Observation], census: Census | None = None) -> None:
        """Update all statistics, and count classes."""
        needs = {o.statistic.needs for o in observations}
        balanced = any(getattr(o.statistic, "balanced", False) for o in observations)
        balance = self.calibration.balance if balanced else None
        watched: dict[Watched, list[Watcher]] = defaultdict(list)
        current = _Current()
        for observation in observations:
            if isinstance(observation.place, Tap):
                place = observation.place
                watched[place.node, place.reader].append(_watcher(place, observation.statistic, current))
        network = PrivateNetwork(self.graph, self.model, watched)
        parameters = [(o.place.name, o.statistic) for o in observations if isinstance(o.place, Parameter)]
        for number, batch in self.batches():
            current.expected = (self.calibration.length or 1) * batch.size * ranks()
            for part in self._parts(network, batch, needs, current):
                current.weights = None if balance is None else balance.of(part)
                current.samples, current.batch, current.run = part.size, number, current.run + 1
                if needs <= {"value"}:
                    with torch.no_grad():
                        output = network.run(part.sample)
                    if census is not None:
                        census.add(part, output)
                else:
                    self._run_back(network, part, parameters, current)

    def balance(self) -> Balance | None:
        """How much each position of the data counts, found in a pass of its own; None if all count alike, or if the
        data can be read only once."""
        if self._is_countable:
            self._count([])
        return self.calibration.balance

    @property
    def _is_countable(self) -> bool:
        return not self.calibration.counted and self.calibration.repeats

    def _count(self, observations: Sequence[Observation]) -> None:
        """Find how much each position counts, and update all statistics as if each counted alike."""
        census = Census()
        self._run(observations, census)
        self.calibration.counted, self.calibration.balance = True, census.balance()

    def _parts(self, network: PrivateNetwork, batch: Batch, needs: set[str], current: _Current) -> Iterator[Batch]:
        if needs <= {"value"}:
            current.samples = 0
            return parts_of(self.calibration, batch, self.graph, network)
        return batch.parts() if "sample gradient" in needs else iter((batch,))

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """The batches with their numbers; shows progress and restores the random state at the end."""
        with torch.random.fork_rng(devices=sorted({t.device.index or 0 for t in self.model.parameters() if t.is_cuda})):
            torch.manual_seed(self.seed)
            yield from enumerate(self.steps.counted("calibrate", self.calibration, self.calibration.length))
        seen = torch.tensor([self.calibration.seen], dtype=torch.float64)
        add_over_ranks([seen])
        self.calibration.seen = int(seen)

    def _run_back(
        self, network: PrivateNetwork, batch: Batch, parameters: list[tuple[str, Statistic]], current: _Current
    ) -> None:
        """Run forward and backward; gradients are those of the loss summed over the samples."""

        def loss(output: Any) -> Tensor:
            try:
                found = (self.loss or default_loss)(output, batch.target)
            except FxpruneError:
                raise
            except Exception as error:  # the user's own code, or a target that torch refuses
                raise CalibrationError(
                    f"the loss fails on {describe_value(output)} and the target, {describe_value(batch.target)}: "
                    f"{described(error)}; give targets that fit, or another loss="
                ) from error
            if not isinstance(found, Tensor) or found.ndim or not found.requires_grad:
                raise CalibrationError(
                    "the loss must be a tensor without dims that depends on the model's output, the mean over the batch"
                )
            return found * batch.size

        with backward(network, batch.sample, loss, [name for name, _ in parameters]):
            for name, statistic in parameters:
                value = network.parameters[name]
                gradient = torch.zeros_like(value) if value.grad is None else value.grad
                with torch.no_grad():
                    statistic.update(current.seen(value.detach(), gradient))


def parts_of(calibration: Calibration, batch: Batch, graph: ChannelGraph, network: PrivateNetwork) -> Iterator[Batch]:
    """A batch in the form that runs fastest: in parts that fit the cache, in channels-last memory format.

    A few samples are tried first; if the network's outputs differ in that form, the batch is run as it is.
    """
    if calibration.part is None:
        calibration.part = max(_FEWEST_TOGETHER, int(_CACHE / max(bytes_of_one(graph, batch), 1.0)))
        if not _alike(network, batch, calibration.part):
            calibration.part = 0
    if not calibration.part:
        return iter((batch,))
    return (part.side_by_side() for part in batch.parts(calibration.part))


def bytes_of_one(graph: ChannelGraph, batch: Batch) -> float:
    """The peak bytes of live values for one sample of a batch."""
    memory = budget_model(graph, "memory").full - 4 * budget_model(graph, "params").full
    sample = graph.captured.sample
    known, here = (sum(t.numel() for t in s.tensors) / (s.batch_size or 1) for s in (sample, batch.sample))
    return max(memory, 0.0) / (sample.batch_size or 1) * here / max(known, 1.0)


def _alike(network: PrivateNetwork, batch: Batch, size: int) -> bool:
    """Whether a network's outputs for few samples, in channels-last format, equal those for twice as many together."""
    few = max(min(size, batch.size) // 2, 1)
    whole = next(batch.parts(2 * few))
    try:
        with torch.no_grad():
            wanted = pytree.tree_leaves(network.run(whole.sample.map(torch.clone)))
            parts = [network.run(part.side_by_side().sample.map(torch.clone)) for part in whole.parts(few)]
            pairs = zip(zip(*map(pytree.tree_leaves, parts), strict=True), wanted, strict=True)
            return all(_close(torch.cat(given), one) for given, one in pairs)
    except Exception:  # the user's own code may be written for one batch size
        return False


def _close(one: Tensor, other: Tensor) -> bool:
    most = float(other.abs().max()) if other.numel() else 0.0
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-4 * most)


@dataclass
class _Current:
    """The state of the current run."""

    samples: int = 1  # 0 if statistics must not see the run
    batch: int = 0
    run: int = 0
    expected: float = 1.0
    weights: Weights | None = None

    def seen(self, value: Tensor, gradient: Tensor | None) -> Seen:
        return Seen(value, gradient, self.samples, self.batch, self.run, self.expected, self.weights)


def _watcher(tap: Tap, statistic: Statistic, current: _Current) -> Watcher:
    def show(value: Tensor) -> None:
        with torch.no_grad():
            if current.samples:
                statistic.update(current.seen(tap.read(value.detach(), current.samples), None))

    def show_with_gradient(value: Tensor) -> None:
        # A later op may write over the value before its gradient is known.
        kept = value.detach().clone()

        def arrived(gradient: Tensor) -> None:
            with torch.no_grad():
                maps = tap.read(kept, current.samples)
                statistic.update(current.seen(maps, tap.read(gradient, current.samples)))

        if value.requires_grad:
            value.register_hook(arrived)  # type: ignore[no-untyped-call]
        else:
            arrived(torch.zeros_like(kept))

    return show if statistic.needs == "value" else show_with_gradient


@contextmanager
def backward(
    network: PrivateNetwork, sample: Sample, loss: Callable[[Any], Tensor], names: Sequence[str] = ()
) -> Iterator[None]:
    """Run forward and, from a loss of the output, backward. Within the context, parameters of these names have their
    gradients; without names, the input has one if it can."""
    try:
        with torch.enable_grad():
            carried = sample if names else sample.map(_tracked_input)
            if not any(t.requires_grad for t in carried.tensors):
                for name in names or network.parameters:
                    network.parameters[name].requires_grad_(network.parameters[name].is_floating_point())
            loss(network.run(carried)).backward()  # type: ignore[no-untyped-call]
        yield
    finally:
        for parameter in network.parameters.values():
            parameter.grad = None
            parameter.requires_grad_(False)


def _tracked_input(tensor: Tensor) -> Tensor:
    # A clone, because a network may write to its input in place.
    return tensor.detach().requires_grad_().clone() if tensor.is_floating_point() else tensor
