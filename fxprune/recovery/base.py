"""What a recovery is, and what it has to work on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from fxprune.analysis import ChannelGraph
from fxprune.axes.elements import Mask
from fxprune.axes.expressions import Channels
from fxprune.errors import RecoveryError
from fxprune.planning import Plan
from fxprune.progress import Steps
from fxprune.reporting import RecoveryRow
from fxprune.rewriting.pruned_module import PrunedGraphModule
from fxprune.samples import Sample
from fxprune.statistics import Calibration
from fxprune.statistics.reducing import add_over_ranks

__all__ = ["Recovery", "Work"]


@dataclass(eq=False)
class Work:
    """One pruned network to be recovered.

    Attributes:
        graph: the original's channel graph.
        model: the original, which is only read.
        pruned: the pruned network; its kept values are changed in place.
        plan: what was cut.
        calibration: the data; None where there are none.
        steps: shows progress.
        seed: of the output positions that are drawn.
    """

    graph: ChannelGraph
    model: nn.Module
    pruned: PrunedGraphModule
    plan: Plan
    calibration: Calibration | None = None
    steps: Steps = field(default_factory=lambda: Steps(False))
    seed: int = 0

    @property
    def masks(self) -> Mapping[Channels, Mask]:
        """Which units of each group stay."""
        return self.plan.masks(self.graph)

    def batches(self, name: str) -> list[Sample]:
        """The calibration's inputs; this rank's share where several processes work together.

        Raises:
            RecoveryError: there is no calibration; the message names the recovery.
            CalibrationError: the data do not fit the model.
        """
        if self.calibration is None:
            raise RecoveryError(
                f"recover={name!r} measures the network on data: pass calibration=, batches of what the model takes "
                '(a DataLoader or a list); recover="fuse" needs none'
            )
        samples = [batch.sample for batch in self.calibration]
        seen = torch.tensor([self.calibration.seen], dtype=torch.float64)
        add_over_ranks([seen])
        self.calibration.seen = int(seen)
        return samples

    @property
    def samples(self) -> int:
        """How many samples the last look at the calibration saw."""
        return 0 if self.calibration is None else self.calibration.seen


@runtime_checkable
class Recovery(Protocol):
    """Changes kept values of a pruned network so that it does again what the original does."""

    @property
    def name(self) -> str:
        """The name it is chosen by, and that the report shows."""
        ...

    def recover(self, work: Work) -> RecoveryRow:
        """Change ``work.pruned`` in place, in eval mode and without gradients; say what was done."""
        ...
