"""Networks to measure, with random weights, and what they are called with."""

from benchmarks.networks.finding import LIBRARIES, Network, find_network, model_names, with_images_of

__all__ = ["LIBRARIES", "Network", "find_network", "model_names", "with_images_of"]
