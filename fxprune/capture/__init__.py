"""Capture: a live model becomes an FX graph whose nodes know their values on the meta device.

>>> import torch, fxprune
>>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
>>> [node.target for node in fxprune.analyze(net, torch.randn(1, 4)).captured.graph.nodes]
['input', '0', '1', '2', 'output']
"""

from fxprune.capture.capturing import Captured, capture
from fxprune.capture.modes import Modes, capture_training, modes_of
from fxprune.capture.partial import capture_parts

__all__ = ["Captured", "Modes", "capture", "capture_parts", "capture_training", "modes_of"]
