"""Latency of operations: timed once on this machine, then looked up by the sizes of their axes."""

from fxprune.cost.latency.measuring import measured_latency
from fxprune.cost.latency.model import LatencyModel, compared
from fxprune.cost.latency.table import LatencyTable

__all__ = ["LatencyModel", "LatencyTable", "compared", "measured_latency"]
