"""Statistics of activations and gradients, streamed in one pass over calibration data on a private copy.

The mean activation of two channels over batches of two samples and of one: (1 + 2 + 3) / 3 and (0 + 0 + 9) / 3.

>>> import torch, fxprune
>>> from fxprune.calibration import Calibration, Collector, Mean, Observation, TapFinder
>>> net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU(), torch.nn.Linear(2, 1)).eval()
>>> _ = torch.nn.init.eye_(net[0].weight)
>>> graph = fxprune.analyze(net, torch.randn(1, 2))
>>> (tap,), mean = TapFinder(graph).taps(graph.groups[0], "activated"), Mean(2, torch.abs)
>>> batches = [torch.tensor([[1.0, -2.0], [2.0, -1.0]]), torch.tensor([[3.0, 9.0]])]
>>> Collector(graph, net, Calibration(batches, graph.captured.sample)).collect([Observation(tap, mean)])
>>> mean.result().tolist()
[2.0, 3.0]
"""

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
