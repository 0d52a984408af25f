"""DenseNet for 32x32 images (Huang et al. 2017, arXiv 1608.06993), without bottlenecks and without compression."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class DenseLayer(nn.Module):
    """Batch norm, ReLU and a 3x3 convolution whose ``growth`` channels join what it read."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.bn, self.relu = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(channels, growth, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C + growth, H, W)."""
        return torch.cat((x, self.conv(self.relu(self.bn(x)))), 1)


class Transition(nn.Module):
    """Between dense blocks: batch norm, ReLU, a 1x1 convolution, and the mean of each 2x2 window."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn, self.relu = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C, H/2, W/2)."""
        return F.avg_pool2d(self.conv(self.relu(self.bn(x))), 2)


class CifarDenseNet(nn.Module):
    """Three dense blocks of equal length with 1x1 convolutions and average pooling between them."""

    def __init__(self, depth: int = 40, growth: int = 12, num_classes: int = 10) -> None:
        """Raises ValueError for a depth that is not 3n+4."""
        super().__init__()
        layers, rest = divmod(depth - 4, 3)
        if rest or layers < 1:
            raise ValueError(f"such a network has 3n+4 layers (7, 10, ..., 40), not {depth}")
        channels = 2 * growth
        parts: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
        for block in range(3):
            for _ in range(layers):
                parts.append(DenseLayer(channels, growth))
                channels += growth
            if block < 2:
                parts.append(Transition(channels))
        self.features = nn.Sequential(*parts, nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.AvgPool2d(8))
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, 32, 32) to logits (N, classes)."""
        logits: torch.Tensor = self.fc(self.features(x).flatten(1))
        return logits
