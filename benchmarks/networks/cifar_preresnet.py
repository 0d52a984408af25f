"""Pre-activation ResNets of bottlenecks for 32x32 images (He et al. 2016, arXiv 1603.05027), of 9n+2 layers."""

from __future__ import annotations

import torch
from torch import nn

_EXPANSION = 4
_PLANES = (16, 32, 64)


class PreActivationBottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each after batch norm and ReLU, beside a shortcut of the raw input."""

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        out_channels = planes * _EXPANSION
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, planes, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(planes), nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn3, self.conv3 = nn.BatchNorm2d(planes), nn.Conv2d(planes, out_channels, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        changes = stride != 1 or channels != out_channels
        self.shortcut = nn.Conv2d(channels, out_channels, 1, stride, bias=False) if changes else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, 4 planes, H/stride, W/stride)."""
        out = self.conv1(self.relu(self.bn1(x)))
        out = self.conv2(self.relu(self.bn2(out)))
        out = self.conv3(self.relu(self.bn3(out)))
        total: torch.Tensor = out + self.shortcut(x)
        return total


class CifarPreResNet(nn.Module):
    """Three stages of bottlenecks; batch norm, ReLU and average pooling before the classifier."""

    def __init__(self, depth: int = 164, num_classes: int = 10) -> None:
        """Raises ValueError for a depth that is not 9n+2."""
        super().__init__()
        blocks, rest = divmod(depth - 2, 9)
        if rest or blocks < 1:
            raise ValueError(f"such a network has 9n+2 layers (11, 20, ..., 164), not {depth}")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        channels = 16
        stages = []
        for number, planes in enumerate(_PLANES):
            for block in range(blocks):
                stages.append(PreActivationBottleneck(channels, planes, 2 if number and not block else 1))
                channels = planes * _EXPANSION
        self.blocks = nn.Sequential(*stages)
        self.bn, self.relu, self.pool = nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.AvgPool2d(8)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, 32, 32) to logits (N, classes)."""
        out = self.pool(self.relu(self.bn(self.blocks(self.conv1(x)))))
        logits: torch.Tensor = self.fc(out.flatten(1))
        return logits
