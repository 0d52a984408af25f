"""How the papers train, the stages of a training that goes on where it stopped, and schedules in the course of it."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from benchmarks.recipes.data import Images
from fxprune.schedules import FusedTraining, Polarization, SoftPruning, SparseTraining
from fxprune.util.progress import Steps


@dataclass(frozen=True)
class Recipe:
    """Training with SGD and momentum.

    Attributes:
        epochs: how many.
        batch: images in a step.
        rate: the first learning rate.
        decay: weight decay.
        drops: shares of the training after which the rate is divided by 10.
    """

    epochs: int
    batch: int
    rate: float
    decay: float
    drops: tuple[float, ...] = (0.5, 0.75)

    def rate_at(self, done: float) -> float:
        """The learning rate after a share of the training."""
        return float(self.rate * 0.1 ** sum(done >= drop for drop in self.drops))


# Shao et al. 2021: the released trainer, and its command for ResNet-56's fine-tuning, which repeats the schedule.
SPARSE = Recipe(160, 128, 0.1, 1e-4)
SHAO_FINE = Recipe(160, 64, 0.1, 1e-4)
SPARSE_STRENGTH, SPARSE_STRENGTH_OF_VGG = 1e-5, 1e-4
# Wu et al. 2023: inferred (five steps, a few epochs after each, then a fine-tuning; soft pruning as He et al. 2018).
BETWEEN = Recipe(10, 128, 0.01, 5e-4, ())
WU_FINE = Recipe(160, 128, 0.01, 5e-4)
SOFT = Recipe(200, 128, 0.1, 5e-4)
ITERATIONS = 5
# FOAD: the released script.
FOAD_FINE = Recipe(160, 64, 0.1, 1e-4)
# APBM: the recipe of DCFF's released code, with which its formulation agrees.
FUSED = Recipe(300, 256, 0.1, 5e-4)
FUSED_RATE = 0.5
# Xiu et al. 2022: inferred.
DISTIL = Recipe(100, 128, 0.01, 1e-4)
TEACHER = Recipe(100, 32, 0.05, 5e-4)
TEMPERATURE, SOFT_SHARE = 4.0, 0.9
# Reconstruction reads images without their labels; so many are enough for layers of up to 64 channels.
RECONSTRUCTED_FROM = 1024
# Zhuang et al. 2020: the recipe of slimming; the strength is a choice.
POLAR_STRENGTH, POLAR_PULL = 1e-4, 1.2

# The published reductions of FLOPs: ResNet-56 on CIFAR-10, for FOAD VGG-16; half where no figure could be read.
RATIOS = {
    "multi_source": 0.5,
    "entropy": 0.45,
    "parallel": 0.50,
    "filter_similarity_hard": 0.611,
    "filter_similarity_soft": 0.611,
    "filter_similarity_soft_tuned": 0.611,
    "foad": 0.637,
    "apbm": 0.5,
    "train_then_prune": 0.5,
    "slimming": 0.5,
    "polarization": 0.5,
    "hrank": 0.5,
    "uncut": 0.0,
    "magnitude": 0.5,
    "auto": 0.5,
    "torch_pruning": 0.5,
}


def changed(recipe: Recipe, batch: int | None, rate: float | None) -> Recipe:
    """A recipe with another batch or rate."""
    return replace(recipe, batch=batch or recipe.batch, rate=rate or recipe.rate)


class Hooks:
    """Called around epochs and updates; nothing by itself."""

    def before_epoch(self) -> None:
        """At the start of an epoch."""

    def before_update(self) -> None:
        """Between the backward pass and the optimiser's step."""

    def after_update(self) -> None:
        """After the optimiser's step."""

    def after_epoch(self) -> None:
        """At the end of an epoch."""

    def state_dict(self) -> dict[str, Any]:
        """What it needs to go on."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on."""


class Sparse(Hooks):
    """Scales of batch norms pushed to zero."""

    def __init__(self, schedule: SparseTraining) -> None:
        self._schedule = schedule

    def before_update(self) -> None:
        """Add the subgradient."""
        self._schedule.step()


class Polarised(Hooks):
    """Scales of batch norms parted."""

    def __init__(self, schedule: Polarization) -> None:
        self._schedule = schedule

    def before_update(self) -> None:
        """Add the subgradient."""
        self._schedule.step()

    def after_update(self) -> None:
        """Keep the scales in their bounds."""
        self._schedule.clamp()


class Soft(Hooks):
    """Channels silenced after every epoch."""

    def __init__(self, schedule: SoftPruning) -> None:
        self._schedule = schedule

    def before_epoch(self) -> None:
        """Let silent channels grow again."""
        self._schedule.wake()

    def after_epoch(self) -> None:
        """Choose anew, and silence."""
        self._schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """The schedule's."""
        return self._schedule.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on."""
        self._schedule.load_state_dict(state)


class Fused(Hooks):
    """Kernels fused anew at the start of every epoch."""

    def __init__(self, schedule: FusedTraining) -> None:
        self._schedule = schedule

    def before_epoch(self) -> None:
        """Another temperature, and other shares."""
        self._schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """The schedule's."""
        return self._schedule.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on."""
        self._schedule.load_state_dict(state)


_LEAST_STEPS_OF_AN_EPOCH = 25


@dataclass
class Trainer:
    """Runs the stages of one method.

    Attributes:
        images: what is trained on.
        steps: how many updates all stages have together; None runs every stage as published.
        batch, rate: in the place of the published ones.
        state: folder in which each stage keeps its state after every epoch; None keeps none.
        seed: of the order and the augmentation.
        half: bfloat16 where autocast allows it.
    """

    images: Images
    steps: int | None = None
    batch: int | None = None
    rate: float | None = None
    state: Path | None = None
    seed: int = 0
    half: bool = True
    progress: Steps = field(default_factory=Steps)
    seconds: dict[str, float] = field(default_factory=dict)

    def epochs(self, recipe: Recipe, share: float) -> tuple[int, int]:
        """How many epochs, and how many updates in each.

        Args:
            recipe: as published.
            share: of the updates, where there are fewer than published.
        """
        if self.steps is None:
            return recipe.epochs, max(1, self.images.length() // changed(recipe, self.batch, None).batch)
        steps = max(1, round(self.steps * share))
        epochs = min(recipe.epochs, max(1, steps // _LEAST_STEPS_OF_AN_EPOCH))
        return epochs, math.ceil(steps / epochs)

    def fit(
        self,
        stage: str,
        network: nn.Module,
        recipe: Recipe,
        share: float = 1.0,
        *,
        hooks: Hooks | None = None,
        optimizer: SGD | None = None,
    ) -> SGD:
        """Train in place; the optimiser comes back."""
        recipe, hooks = changed(recipe, self.batch, self.rate), hooks or Hooks()
        epochs, steps = self.epochs(recipe, share)
        if optimizer is None:
            trained = [*network.parameters(), *self.images.loss.parameters()]
            optimizer = SGD(trained, recipe.rate, momentum=0.9, weight_decay=recipe.decay)
        first = self._load(stage, network, optimizer, hooks)
        network.train()
        for epoch in range(first, epochs):
            with self.timed(stage):
                hooks.before_epoch()
                for step, (images, labels) in enumerate(self._epoch(stage, epoch, epochs, steps, recipe.batch)):
                    set_rate(optimizer, recipe.rate_at((epoch + step / steps) / epochs))
                    self._update(network, optimizer, hooks, images, labels)
                hooks.after_epoch()
            self._save(stage, epoch + 1, network, optimizer, hooks)
        network.eval()
        return optimizer

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the processor time to a stage's."""
        started = time.process_time()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.process_time() - started

    def _epoch(self, stage: str, epoch: int, epochs: int, steps: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        seed = zlib.crc32(f"{self.seed} {stage} {epoch}".encode())
        name = f"{stage}, epoch {epoch + 1} of {epochs}"
        return self.progress.counted(name, islice(self.images.batches(batch, seed), steps), steps)

    def _update(self, network: nn.Module, optimizer: SGD, hooks: Hooks, images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            loss = self.images.loss(network(images), labels)
        loss.backward()
        hooks.before_update()
        optimizer.step()
        hooks.after_update()

    # -- going on ------------------------------------------------------------------------------------------------------

    def _load(self, stage: str, network: nn.Module, optimizer: SGD, hooks: Hooks) -> int:
        path = None if self.state is None else self.state / f"{stage}.pt"
        if path is None or not path.exists():
            return 0
        held: dict[str, Any] = torch.load(path, weights_only=True)
        network.load_state_dict(held["network"])
        self.images.loss.load_state_dict(held["loss"])
        optimizer.load_state_dict(held["optimizer"])
        hooks.load_state_dict(held["hooks"])
        self.seconds[stage] = held["seconds"]
        return int(held["epoch"])

    def _save(self, stage: str, epoch: int, network: nn.Module, optimizer: SGD, hooks: Hooks) -> None:
        if self.state is None:
            return
        self.state.mkdir(parents=True, exist_ok=True)
        states = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "hooks": hooks.state_dict()}
        states["loss"] = self.images.loss.state_dict()
        part = self.state / f"{stage}.part"
        torch.save({**states, "epoch": epoch, "seconds": self.seconds[stage]}, part)
        part.replace(self.state / f"{stage}.pt")


def set_rate(optimizer: SGD, rate: float) -> None:
    """Give every group of parameters a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
