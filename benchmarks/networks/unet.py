"""U-Net (Ronneberger et al. 2015, arXiv 1505.04597) with padded convolutions and batch norm."""

from __future__ import annotations

import torch
from torch import nn


def _double_conv(channels: int, out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (channels, out):
        layers += [nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Four halvings and four doublings of the resolution, each level joined to its counterpart."""

    def __init__(self, num_classes: int = 2, width: int = 64) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        self.down = nn.ModuleList(_double_conv(a, b) for a, b in zip([3, *widths[:-1]], widths, strict=True))
        self.pool = nn.MaxPool2d(2)
        pairs = [(widths[i + 1], widths[i]) for i in range(3, -1, -1)]
        self.rise = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in pairs)
        self.up = nn.ModuleList(_double_conv(a, b) for a, b in pairs)
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, H, W), both sizes multiples of 16, to logits (N, classes, H, W)."""
        levels: list[torch.Tensor] = []
        for number, block in enumerate(self.down):
            x = block(self.pool(x) if number else x)
            levels.append(x)
        for rise, up, level in zip(self.rise, self.up, levels[-2::-1], strict=True):
            x = up(torch.cat((level, rise(x)), 1))
        logits: torch.Tensor = self.head(x)
        return logits
