"""How long networks take: the original and the pruned one, side by side, by several runtimes."""

from fxprune.timing.latency import Latency, in_turns, measure_latency
from fxprune.timing.runtimes import RUNTIMES

__all__ = ["RUNTIMES", "Latency", "in_turns", "measure_latency"]
