"""Statistics of activations and gradients, streamed in one pass over calibration data on a private copy."""

from fxprune.statistics.calibration import Batch, Calibration
from fxprune.statistics.collecting import Collector
from fxprune.statistics.layer_rows import LayerRows
from fxprune.statistics.losses import Loss
from fxprune.statistics.observing import Observation
from fxprune.statistics.places import Parameter, Seen, Tap
from fxprune.statistics.statistic import Mean, Statistic, Sums
from fxprune.statistics.taps import TAP_RULES, TapFinder

__all__ = [
    "TAP_RULES",
    "Batch",
    "Calibration",
    "Collector",
    "LayerRows",
    "Loss",
    "Mean",
    "Observation",
    "Parameter",
    "Seen",
    "Statistic",
    "Sums",
    "Tap",
    "TapFinder",
]
