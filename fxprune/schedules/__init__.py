"""Schedules: pruning during training. Each needs a few lines in the user's own loop.

One-shot pruning is :func:`fxprune.compile` itself, followed by training.

>>> from fxprune.schedules import ratio_at
>>> [round(ratio_at(step, 3, 0.5, "geometric"), 2) for step in range(4)]
[0.0, 0.21, 0.37, 0.5]
"""

from fxprune.schedules.callbacks import lightning_callback, pruning_metrics, step_in_place, trainer_callback
from fxprune.schedules.fused import FusedTraining
from fxprune.schedules.iterative import IterativePruning
from fxprune.schedules.soft import Polarization, SoftPruning, SparseTraining
from fxprune.schedules.steps import ratio_at

__all__ = [
    "FusedTraining", "IterativePruning", "Polarization", "SoftPruning", "SparseTraining", "lightning_callback",
    "pruning_metrics", "ratio_at", "step_in_place", "trainer_callback",
]  # fmt: skip
