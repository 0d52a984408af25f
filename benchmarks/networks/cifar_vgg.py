"""VGG for 32x32 images (Simonyan and Zisserman 2015, arXiv 1409.1556): batch norm, no biases, one linear layer."""

from __future__ import annotations

import torch
from torch import nn

_CONVS_PER_STAGE = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_WIDTHS = (64, 128, 256, 512, 512)


class CifarVGG(nn.Module):
    """Five stages of 3x3 convolutions, the first four followed by max pooling, the last by average pooling."""

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        """Raises ValueError for a depth other than 16 and 19."""
        super().__init__()
        if depth not in _CONVS_PER_STAGE:
            raise ValueError(f"depth must be 16 or 19, not {depth}")
        layers: list[nn.Module] = []
        channels = 3
        for stage, (width, convs) in enumerate(zip(_WIDTHS, _CONVS_PER_STAGE[depth], strict=True)):
            for _ in range(convs):
                layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2) if stage < 4 else nn.AvgPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, 32, 32) to logits (N, classes)."""
        logits: torch.Tensor = self.classifier(self.features(x).flatten(1))
        return logits
