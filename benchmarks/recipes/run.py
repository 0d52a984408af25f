"""One method on one network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

import fxprune
from benchmarks.recipes.training import Trainer

# Networks whose published pruning lets every layer select its inputs from a stream that keeps its width.
_SELECTING = ("ResNet-164", "DenseNet-40")


@dataclass
class Run:
    """One method on one network.

    Attributes:
        model: the network's name.
        network: at full width; trained, or freshly initialised where a method trains from scratch.
        trainer: with the data.
        ratio: fraction of the MACs that goes.
        before: accuracy of the trained network before anything was done; None where training begins from scratch.
        cut: accuracy right after channels went, for the last time.
    """

    model: str
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
        pruned = fxprune.compile(
            network,
            self.sample,
            self.ratio,
            criterion=criterion,
            calibration=self.trainer.images.calibration(128),
            residual="inner",
            couplings="drop" if self.model in _SELECTING else "keep",
        )
        return self.note(pruned)

    def note(self, pruned: nn.Module) -> nn.Module:
        """Keep the accuracy of a network that has just been cut."""
        self.cut = self.trainer.images.accuracy(pruned)
        return pruned
