"""One method on one network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

import fxprune
from benchmarks.recipes.training import Trainer


@dataclass
class Run:
    """One method on one network.

    Attributes:
        network: at full width; trained, or freshly initialised where a method trains from scratch.
        trainer: with the data.
        ratio: fraction of the MACs that goes.
        before: accuracy of the trained network before anything was done; None where training begins from scratch.
        cut: accuracy right after channels went, for the last time.
    """

    network: nn.Module
    trainer: Trainer
    ratio: float
    before: float | None = None
    cut: float | None = None

    @property
    def sample(self) -> Tensor:
        """An input."""
        return self.trainer.images.sample

    def compile(self, network: nn.Module, criterion: Any) -> nn.Module:
        """One-shot pruning on 128 training images, inside the residual blocks, as all of the papers do."""
        calibration = self.trainer.images.calibration(128)
        pruned = fxprune.compile(
            network, self.sample, self.ratio, criterion=criterion, calibration=calibration, residual="inner"
        )
        return self.note(pruned)

    def note(self, pruned: nn.Module) -> nn.Module:
        """Keep the accuracy of a network that has just been cut."""
        self.cut = self.trainer.images.accuracy(pruned)
        return pruned
