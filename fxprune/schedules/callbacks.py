"""Schedules inside the loops of other libraries: a callback for Lightning, and one for the Trainer of transformers.

Such loops hold the network and the optimiser, so both remain the same objects and change in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fxprune.errors import MissingDependencyError, OptionError, check_count
from fxprune.schedules.iterative import IterativePruning
from fxprune.schedules.soft import Polarization, SoftPruning, SparseTraining, batch_norm_scales
from fxprune.schedules.steps import check_trained

Schedule = IterativePruning | SoftPruning | SparseTraining | Polarization


def step_in_place(schedule: IterativePruning, network: nn.Module, *optimizers: Optimizer) -> None:
    """Take one step of a schedule, and shrink ``network``, its parts and ``optimizers`` in place.

    Args:
        schedule: made with ``keep_class=True``.
        network: it and its submodules remain the same objects, with new parameters.
        optimizers: all optimisers of its parameters; each may hold other parameters, too.

    Raises:
        OptionError: the schedule returns graphs, or none of the optimisers trains the network.
        FxpruneError: see :meth:`IterativePruning.step`.
    """
    _check(schedule)
    check_trained(network, optimizers)
    pruned, moved = schedule.advance(network, optimizers)
    parts = dict(pruned.named_modules())
    for path, part in list(network.named_modules()):  # other references to a part then see the smaller one
        parts[path]._modules.update(part._modules)
        part.__dict__ = parts[path].__dict__
    for optimizer, smaller in zip(optimizers, moved, strict=True):
        optimizer.state, optimizer.param_groups[:] = smaller.state, smaller.param_groups


def _check(schedule: Schedule) -> None:
    if not isinstance(schedule, Schedule):
        raise OptionError(f"a {type(schedule).__name__} returns a network of its own: train that in your own loop")
    if isinstance(schedule, IterativePruning) and not schedule.keep_class:
        raise OptionError("a network can be pruned in place only if its class stays: give the schedule keep_class=True")


def pruning_metrics(schedule: Schedule) -> dict[str, float]:
    """The state of a schedule as numbers, for the logger of any loop.

    Returns:
        ``pruning/step``, the steps so far, and a fraction: of the budget that is removed (``pruning/removed``,
        iterative), of the channels that are silent (``pruning/silent``, soft), or of the batch norm scales that are
        below a hundredth of the largest (``pruning/small_scales``, sparse training and polarization).
    """
    if isinstance(schedule, IterativePruning):
        return {"pruning/step": float(schedule.done), "pruning/removed": schedule.removed}
    if isinstance(schedule, SoftPruning):
        return {"pruning/step": float(schedule.epoch), "pruning/silent": schedule.silent}
    scales = torch.cat([scale.detach().abs().flatten() for scale in batch_norm_scales(schedule.model)])
    small = float((scales < scales.max() / 100).float().mean())
    return {"pruning/step": float(schedule.steps), "pruning/small_scales": small}


class _Loop:
    """The actions of a schedule at each place of a training loop."""

    def __init__(self, schedule: Schedule, every: int) -> None:
        _check(schedule)
        check_count(OptionError, "every", every)
        self.schedule, self.every = schedule, every

    def epoch_begins(self, epoch: int, network: nn.Module, *optimizers: Optimizer) -> None:
        if isinstance(self.schedule, SoftPruning):
            self.schedule.wake()
        elif isinstance(self.schedule, IterativePruning) and epoch % self.every == 0 and not self.schedule.finished:
            step_in_place(self.schedule, network, *optimizers)

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
    """A callback for ``lightning.pytorch.Trainer(callbacks=[...])``; it logs :func:`pruning_metrics` every epoch.

    Args:
        schedule: of ``network``; an :class:`IterativePruning` with ``keep_class=True``.
        network: the part of the LightningModule that is pruned, the same object that the schedule was made with.
        every: epochs from one step of an IterativePruning to the next.

    Raises:
        MissingDependencyError: lightning is not installed.
        OptionError: the schedule returns new networks, or ``every`` is not a number of epochs.
    """
    loop = _Loop(schedule, every)
    try:
        from lightning.pytorch import Callback
    except ImportError:
        raise MissingDependencyError("lightning is not installed: pip install lightning") from None

    class PruningCallback(Callback):  # type: ignore[misc, unused-ignore]
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            loop.epoch_begins(trainer.current_epoch, network, *trainer.optimizers)

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            loop.before_update()

        def on_train_batch_end(self, *given: Any) -> None:
            loop.after_update()

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            loop.epoch_ends()
            pl_module.log_dict(pruning_metrics(schedule))

    return PruningCallback()


def trainer_callback(
    schedule: Schedule, network: nn.Module, *, every: int = 1, log: Callable[[dict[str, float]], Any] | None = None
) -> Any:
    """A callback for ``transformers.Trainer(callbacks=[...])``; arguments and errors as for :func:`lightning_callback`.

    ``log``: is called with :func:`pruning_metrics` after every epoch, as in ``log=lambda found: trainer.log(found)``,
    because a callback does not know its trainer.

    The gradient hooks of :class:`SparseTraining` need a version of transformers with ``on_pre_optimizer_step``.
    """
    loop = _Loop(schedule, every)
    try:
        from transformers import TrainerCallback
    except ImportError:
        raise MissingDependencyError("transformers is not installed: pip install transformers") from None

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
            if log is not None:
                log(pruning_metrics(schedule))

    return PruningCallback()
