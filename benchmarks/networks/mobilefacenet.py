"""MobileFaceNet (Chen et al. 2018, arXiv 1804.07573, table 1): face embeddings of 112x112 images."""

from __future__ import annotations

import torch
from torch import nn

# Expansion, channels, repeats, stride of the first.
_STAGES = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))


def _conv(channels: int, out: int, kernel: int, stride: int = 1, *, groups: int = 1, act: bool = True) -> nn.Sequential:
    padding = kernel // 2 if kernel < 7 else 0
    layers = [nn.Conv2d(channels, out, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(out)]
    return nn.Sequential(*layers, nn.PReLU(out)) if act else nn.Sequential(*layers)


class InvertedBottleneck(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1 projection; a shortcut where shapes allow it."""

    def __init__(self, channels: int, out: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.body = nn.Sequential(
            _conv(channels, inner, 1),
            _conv(inner, inner, 3, stride, groups=inner),
            _conv(inner, out, 1, act=False),
        )
        self.has_shortcut = stride == 1 and channels == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, out, H/stride, W/stride)."""
        out: torch.Tensor = self.body(x)
        return x + out if self.has_shortcut else out


class MobileFaceNet(nn.Module):
    """Embeddings of ``size`` numbers, the last maps weighted by a depthwise convolution over all of them."""

    def __init__(self, size: int = 128) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(3, 64, 3, 2), _conv(64, 64, 3, groups=64)]
        channels = 64
        for expansion, out, repeats, stride in _STAGES:
            for repeat in range(repeats):
                layers.append(InvertedBottleneck(channels, out, expansion, 1 if repeat else stride))
                channels = out
        layers += [_conv(channels, 512, 1), _conv(512, 512, 7, groups=512, act=False), _conv(512, size, 1, act=False)]
        self.features = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, 112, 112) to embeddings (N, size)."""
        embeddings: torch.Tensor = self.features(x).flatten(1)
        return embeddings
