"""DABNet (Li et al. 2019, arXiv 1907.11357): depthwise asymmetric bottlenecks for real-time segmentation."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

_DILATIONS = ((2, 2, 2), (4, 4, 8, 8, 16, 16))


def _norm(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels, eps=1e-3), nn.PReLU(channels))


def _conv(
    channels: int, out: int, kernel: tuple[int, int], stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Conv2d:
    padding = (dilation * (kernel[0] // 2), dilation * (kernel[1] // 2))
    return nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, bias=False)


class DABModule(nn.Module):
    """3x3 to half the width, two branches of asymmetric depthwise convolutions (one dilated), 1x1 back, and a sum."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        half = channels // 2
        self.reduce = nn.Sequential(_norm(channels), _conv(channels, half, (3, 3)), _norm(half))
        self.near, self.far = (self._branch(half, d) for d in (1, dilation))
        self.expand = nn.Sequential(_norm(half), _conv(half, channels, (1, 1)))

    @staticmethod
    def _branch(width: int, dilation: int) -> nn.Sequential:
        vertical = _conv(width, width, (3, 1), dilation=dilation, groups=width)
        horizontal = _conv(width, width, (1, 3), dilation=dilation, groups=width)
        return nn.Sequential(vertical, _norm(width), horizontal, _norm(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape in and out."""
        y = self.reduce(x)
        total: torch.Tensor = x + self.expand(self.near(y) + self.far(y))
        return total


class DownSampling(nn.Module):
    """Half the resolution: a strided convolution, beside it max pooling where the width grows by less than doubling."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.has_pool = out > channels
        self.conv = _conv(channels, out - channels if self.has_pool else out, (3, 3), 2)
        self.norm = _norm(out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, out, H/2, W/2)."""
        y = self.conv(x)
        result: torch.Tensor = self.norm(torch.cat((y, F.max_pool2d(x, 2)), 1) if self.has_pool else y)
        return result


class DABNet(nn.Module):
    """Two blocks of modules; the image itself, shrunk, joins the maps before each block and at the end."""

    def __init__(self, num_classes: int = 19) -> None:
        super().__init__()
        first = [nn.Sequential(_conv(c, 32, (3, 3), s), _norm(32)) for c, s in ((3, 2), (32, 1), (32, 1))]
        self.stem = nn.Sequential(*first)
        self.norms = nn.ModuleList((_norm(32 + 3), _norm(64 + 64 + 3), _norm(128 + 128 + 3)))
        self.downs = nn.ModuleList((DownSampling(32 + 3, 64), DownSampling(64 + 64 + 3, 128)))
        self.blocks = nn.ModuleList(
            nn.Sequential(*(DABModule(width, d) for d in dilations))
            for width, dilations in zip((64, 128), _DILATIONS, strict=True)
        )
        self.classifier = nn.Conv2d(128 + 128 + 3, num_classes, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, H, W), both sizes multiples of 8, to logits (N, classes, H, W)."""
        images = [x]
        for _ in range(3):
            images.append(F.avg_pool2d(images[-1], 3, 2, 1))
        out = self.norms[0](torch.cat((self.stem(x), images[1]), 1))
        for number in range(2):
            start = self.downs[number](out)
            block = self.blocks[number](start)
            out = self.norms[number + 1](torch.cat((block, start, images[number + 2]), 1))
        return F.interpolate(self.classifier(out), x.shape[2:], mode="bilinear", align_corners=False)
