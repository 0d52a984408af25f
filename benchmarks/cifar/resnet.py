"""ResNets for 32x32 images (He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2).

Three stages of ``n`` basic blocks with 16, 32 and 64 channels, 6n+2 layers in all, and option-A shortcuts: where the
width doubles, the shortcut has no parameters but takes every second pixel and pads channels with zeros.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

_WIDTHS = (16, 32, 64)
_PREFIX = "cifar_resnet"


class OptionAShortcut(nn.Module):
    """Every second pixel, and zeros for half of the output's channels, a quarter on each side."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.side = out_channels // 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, 2C, H/2, W/2)."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.side, self.side))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Identity() if in_channels == out_channels else OptionAShortcut(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C', H/stride, W/stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class CifarResNet(nn.Module):
    """A network of ``6 * blocks + 2`` layers for images of 32x32 pixels."""

    def __init__(self, blocks: int, num_classes: int = 10) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv1 = nn.Conv2d(3, _WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.layer1 = _stage(_WIDTHS[0], _WIDTHS[0], blocks, 1)
        self.layer2 = _stage(_WIDTHS[0], _WIDTHS[1], blocks, 2)
        self.layer3 = _stage(_WIDTHS[1], _WIDTHS[2], blocks, 2)
        self.linear = nn.Linear(_WIDTHS[2], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, H, W) to logits (N, classes)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.avg_pool2d(out, out.shape[3])
        logits: torch.Tensor = self.linear(out.view(out.size(0), -1))
        return logits


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))


def cifar_resnet(depth: int, num_classes: int = 10) -> CifarResNet:
    """The network with ``depth`` layers: 20, 32, 44, 56, 110, 1202, ...

    Raises:
        ValueError: ``depth`` is not 6n+2.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"a CIFAR ResNet has 6n+2 layers (8, 14, 20, ...), not {depth}")
    return CifarResNet(blocks, num_classes)


def cifar_model(name: str, num_classes: int = 10) -> CifarResNet:
    """``cifar_resnetDEPTH`` to the network.

    Raises:
        ValueError: no such name.
    """
    depth = name.removeprefix(_PREFIX)
    if depth == name or not depth.isdecimal():
        raise ValueError(f"unknown model {name!r}: write {_PREFIX}20, {_PREFIX}56, ...")
    return cifar_resnet(int(depth), num_classes)
