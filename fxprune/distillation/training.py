"""accelerate as the engine: devices, mixed precision and data parallel training; an optional dependency."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.distillation.feeding import Feed, Folder
from fxprune.distillation.hints import Pair
from fxprune.distillation.options import Training, seed_everything
from fxprune.errors import DistillationError, MissingDependencyError, OptionError
from fxprune.util.progress import Steps

_PLAIN = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_HPU")


@contextmanager
def engine(precision: str) -> Iterator[Any]:
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
    ours, alone = not AcceleratorState._shared_state, not PartialState._shared_state
    try:
        made = accelerate.Accelerator(mixed_precision=precision, cpu=_runs_on_cpu() or None)
    except ValueError as error:
        raise OptionError(f"accelerate refuses precision={precision!r} in this process: {error}") from error
    try:
        _check(made)
        yield made
    finally:
        made.free_memory()
        if ours:
            # A later training in this process may use another precision.
            AcceleratorState._reset_state(reset_partial_state=alone)


def _runs_on_cpu() -> bool:
    """Whether several processes run on CPUs, which accelerate must be told."""
    return "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()


def _check(made: Any) -> None:
    kind = made.distributed_type.value
    if kind not in _PLAIN:
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


Evaluate = Callable[[nn.Module], float]


class Trainer:
    """One training of a pair on this process; without ``folder`` there are no checkpoints, and no log."""

    def __init__(
        self, pair: Pair, feed: Feed, options: Training, engine: Any, folder: Folder | None, evaluate: Evaluate | None
    ) -> None:
        self.pair, self.feed, self.options, self.engine = pair, feed, options, engine
        self.folder, self.evaluate = folder, evaluate
        self.total = options.total(feed.length)
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
        sample, target = self.pair.read(self.feed.take(), number)
        seed_everything(self.options.seed, "step", number, self.engine.process_index)
        with self.engine.autocast():
            wanted = self.pair.teach(sample)
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
                    "feed": self.feed.state(),
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
            self._take_over(state)
        rows = self.folder.rows(self.step)
        self.history = [{n: v for n, v in row.items() if n != "time"} for row in rows]
        self.engine.wait_for_everyone()
        if self.engine.is_main_process:
            self.folder.rewind(self.step)
        return self.step

    def _take_over(self, state: dict[str, Any]) -> None:
        self.pair.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"] is not None and getattr(self.engine, "scaler", None) is not None:
            self.engine.scaler.load_state_dict(state["scaler"])
        self.feed.go_to(state["feed"])
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
