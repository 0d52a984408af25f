"""Recovery: changes to kept values that bring the smaller network's outputs back to the original's, without labels.

>>> from fxprune.recovery import resolve_recoveries
>>> resolve_recoveries("bias")
[FoldBias(positions=64)]
"""

from fxprune.recovery.base import Recovery, Work
from fxprune.recovery.batchnorm import BatchNorm
from fxprune.recovery.fuse import Fuse
from fxprune.recovery.matching import Match
from fxprune.recovery.reconstruct import FoldBias, Reconstruct
from fxprune.recovery.running import Auto, known_recoveries, resolve_recoveries, run_recoveries

__all__ = [
    "Auto", "BatchNorm", "FoldBias", "Fuse", "Match", "Reconstruct", "Recovery", "Work", "known_recoveries",
    "resolve_recoveries", "run_recoveries",
]  # fmt: skip
