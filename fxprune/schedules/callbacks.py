"""Schedules inside the loops of other libraries: a callback for Lightning, and one for the Trainer of transformers.

Such loops keep the network and the optimiser, so both stay the objects that they are and change in place.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from fxprune.errors import MissingDependencyError, OptionError
from fxprune.schedules.iterative import IterativePruning
from fxprune.schedules.soft import SoftPruning
from fxprune.schedules.sparse import Polarization, SparseTraining

Schedule = IterativePruning | SoftPruning | SparseTraining | Polarization


def step_in_place(schedule: IterativePruning, network: nn.Module, optimizer: Optimizer) -> None:
    """One step of a schedule after which ``network`` and ``optimizer`` are the smaller ones.

    Raises:
        OptionError: the schedule gives graphs: make it with ``keep_class=True``.
        FxpruneError: see :meth:`IterativePruning.step`.
    """
    if not schedule.keep_class:
        raise OptionError("a network can be pruned in place only if its class stays: give the schedule keep_class=True")
    pruned, moved = schedule.step(network, optimizer)
    network.__dict__ = pruned.__dict__
    optimizer.state, optimizer.param_groups[:] = moved.state, moved.param_groups


class _Loop:
    """What a schedule has to do at each place of a training loop."""

    def __init__(self, schedule: Schedule, every: int) -> None:
        self.schedule, self.every = schedule, every

    def epoch_begins(self, epoch: int, network: nn.Module, optimizer: Optimizer) -> None:
        if isinstance(self.schedule, SoftPruning):
            self.schedule.wake()
        elif isinstance(self.schedule, IterativePruning) and epoch % self.every == 0 and not self.schedule.finished:
            step_in_place(self.schedule, network, optimizer)

    def before_update(self) -> None:
        if isinstance(self.schedule, (SparseTraining, Polarization)):
            self.schedule.step()

    def after_update(self) -> None:
        if isinstance(self.schedule, Polarization):
            self.schedule.clamp()

    def epoch_ends(self) -> None:
        if isinstance(self.schedule, SoftPruning):
            self.schedule.step()


def lightning_callback(schedule: Schedule, network: nn.Module, *, every: int = 1) -> Any:
    """A callback for ``lightning.pytorch.Trainer(callbacks=[...])``.

    Args:
        schedule: of ``network``; an :class:`IterativePruning` with ``keep_class=True``.
        network: the part of the LightningModule that is pruned, as the schedule was given it.
        every: epochs from one step of an IterativePruning to the next.

    Raises:
        MissingDependencyError: lightning is not installed.
    """
    try:
        from lightning.pytorch import Callback
    except ImportError:
        raise MissingDependencyError("lightning is not installed: pip install lightning") from None
    loop = _Loop(schedule, every)

    class PruningCallback(Callback):  # type: ignore[misc, unused-ignore]
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            loop.epoch_begins(trainer.current_epoch, network, trainer.optimizers[0])

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            loop.before_update()

        def on_train_batch_end(self, *given: Any) -> None:
            loop.after_update()

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            loop.epoch_ends()

    return PruningCallback()


def trainer_callback(schedule: Schedule, network: nn.Module, *, every: int = 1) -> Any:
    """A callback for ``transformers.Trainer(callbacks=[...])``; arguments and errors as for :func:`lightning_callback`.

    The gradient hooks of :class:`SparseTraining` need a version of transformers with ``on_pre_optimizer_step``.
    """
    try:
        from transformers import TrainerCallback
    except ImportError:
        raise MissingDependencyError("transformers is not installed: pip install transformers") from None
    loop = _Loop(schedule, every)

    class PruningCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_epoch_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **given: Any) -> None:
            inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
            loop.epoch_begins(round(state.epoch or 0), network, inner)

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            loop.before_update()

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            loop.after_update()

        def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            loop.epoch_ends()

    return PruningCallback()
