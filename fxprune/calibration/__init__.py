"""Statistics of activations and gradients, streamed in one pass over calibration data on a private copy."""

from fxprune.calibration.batches import Batch, Calibration, Loss, held_out
from fxprune.calibration.collecting import Collector, Observation
from fxprune.calibration.rows import LayerRows
from fxprune.calibration.silence import silent_channels
from fxprune.calibration.statistic import Mean, Parameter, Seen, Statistic, Sums, Tap
from fxprune.calibration.taps import TAP_RULES, TapFinder

__all__ = [
    "TAP_RULES", "Batch", "Calibration", "Collector", "LayerRows", "Loss", "Mean", "Observation", "Parameter", "Seen",
    "Statistic", "Sums", "Tap", "TapFinder", "held_out", "silent_channels",
]  # fmt: skip
