"""``fxprune.distill``: train a pruned network to match its teacher."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from fxprune.distillation.feeding import Feed, Folder
from fxprune.distillation.hints import Hint, Pair, resolve_hints
from fxprune.distillation.options import (
    DistillationLoss,
    Distilled,
    MakeOptimizer,
    SoftTargets,
    Training,
    keep_random_state,
    seed_everything,
)
from fxprune.distillation.training import Trainer
from fxprune.distillation.training import engine as started
from fxprune.errors import DistillationError, OptionError
from fxprune.util.paths import device_of
from fxprune.util.progress import Steps


def distill(
    pruned: nn.Module,
    teacher: nn.Module,
    loader: Iterable[Any],
    *,
    steps: int | None = None,
    epochs: int | None = None,
    loss: DistillationLoss | None = None,
    hints: str | Hint | Sequence[str | Hint] = (),
    optimizer: str | MakeOptimizer = "sgd",
    learning_rate: float | None = None,
    weight_decay: float = 1e-4,
    schedule: str = "cosine",
    warmup: int = 0,
    accumulate: int = 1,
    clip: float | None = None,
    precision: str = "no",
    evaluate: Callable[[nn.Module], float] | None = None,
    evaluate_every: int | None = None,
    keep: str = "last",
    folder: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 100,
    log_every: int = 10,
    seed: int = 0,
    progress: bool | None = None,
) -> Distilled:
    """Train a copy of a pruned network to match its teacher's outputs; labels are optional.

    Runs on the CPU, on a GPU, or on many under ``torchrun`` or ``accelerate launch``: each process then takes its share
    of the batches, gradients are averaged, and the first process writes. A run that was killed can be called again with
    the same arguments: it continues from its last checkpoint and ends with the weights that it would have had.

    Args:
        pruned: the result of :func:`fxprune.compile`, or any network with the teacher's outputs; it is not changed.
        teacher: the network that was pruned; a copy of it runs in eval mode.
        loader: batches of the network's inputs, or ``(input, target)``; a DataLoader, or an iterable that can be read
            again. If the network carries no sample of ``compile``, a pair is read as input and target.
        steps: the number of optimiser steps; give either this or ``epochs``.
        epochs: the number of passes over the loader.
        loss: a function of the network's output, the teacher's and the target (None without one) that returns the mean
            over the batch, or a dict of summands. :class:`~fxprune.distillation.SoftTargets` by default.
        hints: where features are compared too: module paths, or :class:`~fxprune.distillation.Hint` objects.
        optimizer: "sgd" (momentum 0.9), "adamw", or a function of a list of parameters that returns an optimiser.
        learning_rate: for an optimiser chosen by name; 0.01 for "sgd", 0.001 for "adamw".
        weight_decay: for an optimiser chosen by name.
        schedule: "cosine" to zero, "step" (a tenth after a half and after three quarters), or "constant".
        warmup: the number of first steps in which the learning rate rises to its full value.
        accumulate: the number of batches whose gradients are summed for one step.
        clip: the largest norm of a step's gradient.
        precision: "no", "bf16" or "fp16", for autocast; weights keep their dtype.
        evaluate: a function that returns the network's score, higher is better. It is called in eval mode, on every
            process, after the last step and every ``evaluate_every`` steps.
        evaluate_every: see ``evaluate``.
        keep: "last" returns the network of the last step, "best" the one with the best score.
        folder: for ``checkpoint.pt`` and ``metrics.jsonl``; a run that finds its checkpoint there continues from it.
        checkpoint_every: steps between checkpoints.
        log_every: steps between rows of the history and the log.
        seed: the seed for the order of batches, augmentation, dropout and projections.
        progress: show a bar; on a terminal by default.

    Raises:
        MissingDependencyError: accelerate is not installed.
        OptionError: an option is invalid.
        DistillationError: networks, loader, loss and hints do not fit each other, the loss is no longer finite, or a
            checkpoint belongs to another training.
    """
    options = Training(
        steps, epochs, optimizer, learning_rate, weight_decay, schedule, warmup, accumulate, clip, precision,
        evaluate_every, keep, checkpoint_every, log_every, seed,
    )  # fmt: skip
    _check(pruned, teacher, loss, evaluate, keep)
    if folder is not None and getattr(loader, "persistent_workers", False):
        raise OptionError(
            "a run with folder= can be resumed, and workers that outlive an epoch hold random numbers that no "
            "checkpoint knows: make the loader with persistent_workers=False"
        )
    places = resolve_hints(hints, pruned, teacher)
    begun = time.perf_counter()
    with keep_random_state(), torch.inference_mode(False), torch.enable_grad(), started(precision) as engine:
        pair = Pair(pruned, teacher, places, loss or SoftTargets(), engine.device)
        try:
            feed = Feed(loader, engine.process_index, engine.num_processes, seed)
            _prepare_projections(pair, feed, seed)
            trainer = Trainer(pair, feed, options, engine, _folder(folder, options, engine, places), evaluate)
            with Steps(progress if engine.is_main_process else False) as bar:
                trainer.run(bar)
        finally:
            pair.close()
    return _result(pruned, trainer, time.perf_counter() - begun)


def _check(pruned: Any, teacher: Any, loss: Any, evaluate: Any, keep: str) -> None:
    for name, network in (("pruned", pruned), ("teacher", teacher)):
        if not isinstance(network, nn.Module):
            raise DistillationError(f"{name} must be a torch.nn.Module, not {type(network).__name__}")
        if isinstance(network, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            raise DistillationError(f"{name} is wrapped in {type(network).__name__}: pass the network itself, .module")
        if any(t.is_meta for t in (*network.parameters(), *network.buffers())):
            raise DistillationError(f"{name} has weights on the meta device, which hold no values")
    for name, function in (("loss", loss), ("evaluate", evaluate)):
        if function is not None and not callable(function):
            raise OptionError(f"{name} must be a function, not {type(function).__name__}")
    if keep == "best" and evaluate is None:
        raise OptionError('keep="best" needs evaluate=, a function of the network that returns its score')


def _prepare_projections(pair: Pair, feed: Feed, seed: int) -> None:
    if pair.has_projections:
        sample, _ = pair.read(feed.peek(), 0)
        seed_everything(seed, "projections")
        pair.prepare_projections(sample)


def _folder(
    path: str | os.PathLike[str] | None, options: Training, engine: Any, hints: Sequence[Hint]
) -> Folder | None:
    if path is None:
        return None
    settings = {**options.settings(), "processes": engine.num_processes, "hints": [repr(hint) for hint in hints]}
    return Folder(path, settings)


def _result(pruned: nn.Module, trainer: Trainer, seconds: float) -> Distilled:
    network = trainer.pair.network
    best = trainer.options.keep == "best" and trainer.best_weights is not None
    if best:
        network.load_state_dict(trainer.best_weights or {})
    network.to(device_of(pruned))
    network.zero_grad()
    network.train(pruned.training)
    modes = {name: part.training for name, part in pruned.named_modules()}
    for name, part in network.named_modules():
        part.training = modes[name]
    score = trainer.best if best else trainer.score
    return Distilled(network, trainer.step, trainer.history, score, trainer.best_step, seconds, trainer.resumed)
