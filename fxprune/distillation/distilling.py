"""``fxprune.distill``: train a pruned network to match its teacher.

The engine is accelerate, an optional dependency: devices, mixed precision and data parallel training.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.distillation.feeding import Folder, SeededBatches
from fxprune.distillation.hints import Hint, StudentAndTeacher, resolve_hints
from fxprune.distillation.options import (
    DistillationLoss,
    Distilled,
    MakeOptimizer,
    SoftTargets,
    Training,
    seed_everything,
)
from fxprune.errors import DistillationError, MissingDependencyError, OptionError
from fxprune.util.paths import device_of
from fxprune.util.progress import Steps, random_state_kept

_DATA_PARALLEL = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_HPU")
Evaluate = Callable[[nn.Module], float]


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
    evaluate: Evaluate | None = None,
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
    unchanged = random_state_kept(range(torch.cuda.device_count()))
    with unchanged, torch.inference_mode(False), torch.enable_grad(), accelerator(precision) as engine:
        pair = StudentAndTeacher(pruned, teacher, places, loss or SoftTargets(), engine.device)
        try:
            batches = SeededBatches(loader, engine.process_index, engine.num_processes, seed)
            _prepare_projections(pair, batches, seed)
            trainer = Trainer(pair, batches, options, engine, _folder(folder, options, engine, places), evaluate)
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


def _prepare_projections(pair: StudentAndTeacher, batches: SeededBatches, seed: int) -> None:
    if pair.has_projections:
        sample, _ = pair.read(batches.peek(), 0)
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


@contextmanager
def accelerator(precision: str) -> Iterator[Any]:
    """An ``accelerate.Accelerator`` for one training; its process-wide settings end with it.

    Raises:
        MissingDependencyError: accelerate is not installed.
        OptionError: this process already runs accelerate in another precision.
        DistillationError: the processes are not connected, or accelerate is set to something other than data parallel.
    """
    try:
        import accelerate
        from accelerate.state import AcceleratorState, PartialState
    except ImportError as error:
        raise MissingDependencyError(
            "fxprune.distill trains with accelerate, which is not installed: pip install 'fxprune[distill]'"
        ) from error
    # Several processes on CPUs, which accelerate must be told.
    on_cpus = "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()
    ours, alone = not AcceleratorState._shared_state, not PartialState._shared_state
    try:
        made = accelerate.Accelerator(mixed_precision=precision, cpu=on_cpus or None)
    except ValueError as error:
        raise OptionError(f"accelerate refuses precision={precision!r} in this process: {error}") from error
    try:
        _check_parallelism(made)
        yield made
    finally:
        made.free_memory()
        if ours:
            # A later training in this process may use another precision.
            AcceleratorState._reset_state(reset_partial_state=alone)


def _check_parallelism(made: Any) -> None:
    kind = made.distributed_type.value
    if kind not in _DATA_PARALLEL:
        raise DistillationError(
            f"fxprune.distill is for data parallel training, and accelerate is set to {kind}: launch it with torchrun, "
            "or choose a plain configuration"
        )
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if world != made.num_processes:
        raise DistillationError(
            f"torch.distributed has {world} processes and accelerate sees {made.num_processes}: launch the script with "
            "torchrun or accelerate launch, which tell each process its rank"
        )


class Trainer:
    """One training of a pair on this process; without ``folder`` there are no checkpoints, and no log."""

    def __init__(
        self,
        pair: StudentAndTeacher,
        batches: SeededBatches,
        options: Training,
        engine: Any,
        folder: Folder | None,
        evaluate: Evaluate | None,
    ) -> None:
        self.pair, self.batches, self.options, self.engine = pair, batches, options, engine
        self.folder, self.evaluate = folder, evaluate
        self.total = options.total(batches.length)
        self.model, self.optimizer = engine.prepare(pair.student, options.make_optimizer(pair.trainable()))
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.step = 0
        self.resumed = 0
        self.score: float | None = None
        self.best: float | None = None
        self.best_step: int | None = None
        self.best_weights: dict[str, Tensor] | None = None
        self.history: list[dict[str, Any]] = []

    def run(self, steps: Steps) -> None:
        """Train to the end, from the folder's checkpoint if there is one."""
        start = self.resumed = self._resume()
        self.pair.student.train()
        for _ in steps.counted("distill", range(start, self.total), self.total - start):
            row = self._step()
            self.step += 1
            last = self.step == self.total
            if self.evaluate is not None and (last or self._due(self.options.evaluate_every)):
                row["score"] = self._evaluate()
            if last or self._due(self.options.log_every) or self.step == 1 or "score" in row:
                self._log(row)
            if self.folder is not None and (last or self._due(self.options.checkpoint_every)):
                self._save()
        self._share_buffers()

    def _due(self, every: int | None) -> bool:
        return every is not None and self.step % every == 0

    def _step(self) -> dict[str, Any]:
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.options.factor(self.step, self.total)
        self.optimizer.zero_grad()
        sums: dict[str, Tensor] = {}
        for part in range(self.options.accumulate):
            last = part == self.options.accumulate - 1
            with nullcontext() if last else self.engine.no_sync(self.model):
                for name, value in self._backward(part).items():
                    sums[name] = sums.get(name, torch.zeros_like(value)) + value / self.options.accumulate
        row: dict[str, Any] = {"losses": sums}
        if self.options.clip is not None:
            row["gradient_norm"] = self.engine.clip_grad_norm_(self.pair.trainable(), self.options.clip)
        self.optimizer.step()
        row["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        return row

    def _backward(self, part: int) -> dict[str, Tensor]:
        """Run forward and backward on one batch, and return the summands of its loss."""
        number = self.step * self.options.accumulate + part
        sample, target = self.pair.read(self.batches.take(), number)
        seed_everything(self.options.seed, "step", number, self.engine.process_index)
        with self.engine.autocast():
            wanted = self.pair.teacher_output(sample)
        parts = self.pair.losses(self.model, sample, target, wanted)
        self.engine.backward(sum(parts.values(), torch.zeros((), device=self.engine.device)) / self.options.accumulate)
        return {name: value.detach() for name, value in parts.items()}

    def _share_buffers(self) -> None:
        """Give all ranks the first one's batch norm statistics, as the next step would."""
        if self.engine.num_processes > 1:
            for buffer in self.pair.student.buffers():
                torch.distributed.broadcast(buffer, 0)

    def _evaluate(self) -> float:
        """The score of the current network; all processes use the first one's."""
        self._share_buffers()
        network = self.pair.network.eval()
        with torch.no_grad():
            assert self.evaluate is not None
            found = self.evaluate(network)
        self.pair.student.train()
        value = torch.tensor(_as_score(found), dtype=torch.float64, device=self.engine.device)
        if self.engine.num_processes > 1:
            torch.distributed.broadcast(value, 0)
        self.score = float(value)
        if self.best is None or self.score > self.best:
            self.best, self.best_step = self.score, self.step
            if self.options.keep == "best":
                self.best_weights = _on_cpu(network.state_dict())
        return self.score

    def _log(self, row: dict[str, Any]) -> None:
        """Record a row of numbers, as means over the ranks. Raises DistillationError: the loss is no longer finite."""
        losses = {n: float(self.engine.reduce(v.float(), "mean")) for n, v in row.pop("losses").items()}
        total = sum(losses.values())
        if not math.isfinite(total):
            raise DistillationError(
                f"the loss is {total} after step {self.step}: lower learning_rate, add warmup or clip, or use "
                'precision="bf16" instead of "fp16"'
            )
        plain = {name: float(value) for name, value in row.items()}
        self.history.append({"step": self.step, **losses, "loss": total, **plain})
        if self.folder is not None and self.engine.is_main_process:
            self.folder.log({**self.history[-1], "time": round(time.time(), 3)})

    def _save(self) -> None:
        assert self.folder is not None
        self.engine.wait_for_everyone()
        if self.engine.is_main_process:
            scaler = getattr(self.engine, "scaler", None)
            self.folder.save(
                {
                    "step": self.step,
                    "student": _on_cpu(self.pair.student.state_dict()),
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": scaler.state_dict() if scaler is not None else None,
                    "feed": self.batches.state(),
                    "scores": [self.score, self.best, self.best_step],
                    "best": self.best_weights,
                }
            )
        self.engine.wait_for_everyone()

    def _resume(self) -> int:
        """Restore the state in the folder's checkpoint, and return the step to continue from."""
        if self.folder is None:
            return 0
        state = self.folder.load()
        if state is not None:
            self._load_state(state)
        rows = self.folder.rows(self.step)
        self.history = [{n: v for n, v in row.items() if n != "time"} for row in rows]
        self.engine.wait_for_everyone()
        if self.engine.is_main_process:
            self.folder.rewind(self.step)
        return self.step

    def _load_state(self, state: dict[str, Any]) -> None:
        self.pair.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"] is not None and getattr(self.engine, "scaler", None) is not None:
            self.engine.scaler.load_state_dict(state["scaler"])
        self.batches.go_to(state["feed"])
        self.step = int(state["step"])
        self.score, self.best, self.best_step = state["scores"]
        self.best_weights = state["best"]


def _as_score(found: Any) -> float:
    """The result of a user's evaluation as a score. Raises DistillationError: it is not a number."""
    if isinstance(found, Tensor) and found.numel() == 1:
        found = found.item()
    if not isinstance(found, (int, float)) or math.isnan(found):
        raise DistillationError(f"evaluate must return a number, higher is better, not {found!r}")
    return float(found)


def _on_cpu(state: dict[str, Any]) -> dict[str, Any]:
    copied: dict[str, Any] = pytree.tree_map_only(Tensor, lambda t: t.detach().to("cpu", copy=True), dict(state))
    return copied
