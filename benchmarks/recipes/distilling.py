"""Xiu et al. 2022: multi-source importance, then distillation from the unpruned network."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import fxprune
from benchmarks.recipes import published
from benchmarks.recipes.data import Images
from benchmarks.recipes.run import Run
from fxprune.distillation import SoftTargets


class Epochs:
    """Batches that can be read again, each time in another order."""

    def __init__(self, images: Images, batch: int) -> None:
        self._images, self._batch = images, batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # The trainer seeds torch by seed and epoch before it begins one.
        return self._images.batches(self._batch, int(torch.randint(2**31, ())))


def multi_source(run: Run) -> nn.Module:
    """One cut by features and weights, sets of channels compared by their effect; then distillation."""
    return _distilled(run, run.compile(run.network, "multi_source"), 1.0)


def multi_source_unet(run: Run) -> nn.Module:
    """The same for a U-Net that learns to segment first; the distillation is pixel by pixel, without masks."""
    run.trainer.fit("teacher", run.network, published.TEACHER, 0.5)
    run.before = run.trainer.images.accuracy(run.network)
    return _distilled(run, run.compile(run.network, "multi_source"), 0.5, labels=0.0)


def _distilled(run: Run, pruned: nn.Module, share: float, labels: float = 1 - published.SOFT_SHARE) -> nn.Module:
    trainer, recipe = run.trainer, published.changed(published.DISTIL, run.trainer.batch, run.trainer.rate)
    epochs, steps = trainer.epochs(published.DISTIL, share)
    with trainer.timed("distil"):
        found = fxprune.distill(
            pruned,
            copy.deepcopy(run.network),
            Epochs(trainer.images, recipe.batch),
            steps=epochs * steps,
            loss=SoftTargets(published.TEMPERATURE, labels),
            learning_rate=recipe.rate,
            weight_decay=recipe.decay,
            precision="bf16" if trainer.half else "no",
            folder=None if trainer.state is None else trainer.state / "distil",
            seed=trainer.seed,
        )
    return found.network.eval()
