"""Latency of operations: timed once on this machine, then looked up by the sizes of their axes."""

from fxprune.latency.comparing import compared
from fxprune.latency.measuring import measured_latency
from fxprune.latency.model import LatencyModel
from fxprune.latency.table import LatencyTable

__all__ = ["LatencyModel", "LatencyTable", "compared", "measured_latency"]
