"""Networks to measure, with random weights, and what they are called with."""

from benchmarks.networks.finding import LIBRARIES, Network, find_network, model_names

__all__ = ["LIBRARIES", "Network", "find_network", "model_names"]
