"""Latency of operations: timed once on this machine, then looked up by the sizes of their axes."""

from fxprune.cost.latency.measuring import compared, measured_latency
from fxprune.cost.latency.table import LatencyModel, LatencyTable

__all__ = ["LatencyModel", "LatencyTable", "compared", "measured_latency"]
