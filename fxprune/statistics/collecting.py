"""One pass over calibration data: every tap of every statistic is served while the network runs once a batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fxprune.analysis import ChannelGraph
from fxprune.errors import CalibrationError, FxpruneError
from fxprune.progress import Steps
from fxprune.statistics.calibration import Batch, Calibration
from fxprune.statistics.losses import Loss, default_loss
from fxprune.statistics.observing import Observation
from fxprune.statistics.places import Parameter, Seen, Tap
from fxprune.statistics.reducing import add_over_ranks
from fxprune.statistics.statistic import Statistic
from fxprune.statistics.watching import PrivateNetwork, Watched, Watcher

__all__ = ["Collector"]


@dataclass(eq=False)
class Collector:
    """Runs a network over calibration data.

    The caller's model is only read: a private copy runs, in eval mode, on the model's device. Under an initialised
    ``torch.distributed`` every rank feeds its own shard, and the sums are those of one process over all data.

    Attributes:
        graph: the channel graph.
        model: the caller's model.
        calibration: the data.
        loss: of the output and the target, the mean over the batch; cross-entropy by default.
        steps: shows progress.
        seed: of random numbers drawn by the network or by the data.
    """

    graph: ChannelGraph
    model: nn.Module
    calibration: Calibration
    loss: Loss | None = None
    steps: Steps = field(default_factory=lambda: Steps(False))
    seed: int = 0

    def collect(self, observations: Sequence[Observation]) -> None:
        """Show every statistic all data, in one pass, then add up over ranks.

        Raises:
            CalibrationError: data or target do not fit; see :class:`Calibration` and
                :func:`~fxprune.statistics.losses.default_loss`.
        """
        needs = {o.statistic.needs for o in observations}
        watched: dict[Watched, list[Watcher]] = defaultdict(list)
        current = _Current()
        for observation in observations:
            if isinstance(observation.place, Tap):
                place = observation.place
                watched[place.node, place.reader].append(_watcher(place, observation.statistic, current))
        network = PrivateNetwork(self.graph, self.model, watched)
        parameters = [(o.place.name, o.statistic) for o in observations if isinstance(o.place, Parameter)]
        for number, batch in self.batches():
            for part in batch.singles() if "sample gradient" in needs else (batch,):
                current.samples, current.batch, current.run = part.size, number, current.run + 1
                if needs == {"value"}:
                    with torch.no_grad():
                        _run(network, part)
                else:
                    self._run_back(network, part, parameters, current)
        # One statistic may be taken at several places.
        statistics = {id(o.statistic): o.statistic for o in observations}
        add_over_ranks(t for statistic in statistics.values() for t in statistic.sums())

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """The batches with their numbers; shows progress and restores the random state at the end."""
        with torch.random.fork_rng(devices=_cuda_devices(self.model)):
            torch.manual_seed(self.seed)
            yield from enumerate(self.steps.counted("calibrate", self.calibration, self.calibration.length))
        seen = torch.tensor([self.calibration.seen], dtype=torch.float64)
        add_over_ranks([seen])
        self.calibration.seen = int(seen)

    def _run_back(
        self, network: PrivateNetwork, batch: Batch, parameters: list[tuple[str, Statistic]], current: _Current
    ) -> None:
        """Forward and backward; gradients are of the loss summed over the samples."""
        with torch.enable_grad(), _tracked(network, [name for name, _ in parameters]):
            # Taps alone need no gradients of weights: those of the input carry them.
            carried = batch.sample.map(_tracked_input) if not parameters else batch.sample
            if not parameters and not any(t.requires_grad for t in carried.tensors):
                for parameter in network.parameters.values():
                    parameter.requires_grad_(parameter.is_floating_point())
            output = _run(network, Batch(carried, batch.target, batch.size))
            loss = (self.loss or default_loss)(output, batch.target)
            if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
                raise CalibrationError(
                    "the loss must be a tensor without dims that depends on the model's output, the mean over the batch"
                )
            (loss * batch.size).backward()  # type: ignore[no-untyped-call]
            for name, statistic in parameters:
                value = network.parameters[name]
                gradient = torch.zeros_like(value) if value.grad is None else value.grad
                with torch.no_grad():
                    statistic.update(current.seen(value.detach(), gradient))


@dataclass
class _Current:
    """What is running."""

    samples: int = 1
    batch: int = 0
    run: int = 0

    def seen(self, value: Tensor, gradient: Tensor | None) -> Seen:
        return Seen(value, gradient, self.samples, self.batch, self.run)


def _watcher(tap: Tap, statistic: Statistic, current: _Current) -> Watcher:
    def show(value: Tensor) -> None:
        with torch.no_grad():
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


def _run(network: PrivateNetwork, batch: Batch) -> object:
    try:
        return network.run(batch.sample)
    except FxpruneError:
        raise
    except Exception as error:  # the model is the user's own code: anything may come out of it
        shapes = ", ".join(str(tuple(t.shape)) for t in batch.sample.tensors)
        raise CalibrationError(
            f"the model fails on a batch of calibration (tensors of shape {shapes}): {type(error).__name__}: {error}"
        ) from error


@contextmanager
def _tracked(network: PrivateNetwork, names: list[str]) -> Iterator[None]:
    for name in names:
        network.parameters[name].requires_grad_(True)
    try:
        yield
    finally:
        for parameter in network.parameters.values():
            parameter.grad = None
            parameter.requires_grad_(False)


def _tracked_input(tensor: Tensor) -> Tensor:
    # A clone, because a network may write to its input in place.
    return tensor.detach().requires_grad_().clone() if tensor.is_floating_point() else tensor


def _cuda_devices(model: nn.Module) -> list[int]:
    return sorted({t.device.index or 0 for t in model.parameters() if t.is_cuda})
