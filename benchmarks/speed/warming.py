"""A first call that no measurement has to pay for."""

from __future__ import annotations

import torch
from torch import nn

import fxprune
from benchmarks.networks import Network


def warm_up() -> Network:
    """Compile a tiny network, so that imports and everything that is made once is there; the network comes back."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    sample = torch.randn(1, 3, 8, 8)
    fxprune.compile(model, sample, 0.2, verify=False)
    return Network(model, sample, sample)
