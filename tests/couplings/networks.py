"""Small networks whose streams have several readers."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class PreActivation(nn.Module):
    """A pre-activation bottleneck (He et al. 2016, arXiv 1603.05027)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, inner, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(inner), nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.bn3, self.conv3 = nn.BatchNorm2d(inner), nn.Conv2d(inner, channels, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(self.relu(self.bn1(x)))
        y = self.conv2(self.relu(self.bn2(y)))
        return x + self.conv3(self.relu(self.bn3(y)))


class Bottlenecks(nn.Module):
    """A residual stream of 16 channels with three readers in blocks and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*(PreActivation(16, 8) for _ in range(3)))
        self.bn, self.fc = nn.BatchNorm2d(16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.blocks(self.stem(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Dense(nn.Module):
    """A dense block (Huang et al. 2017, arXiv 1608.06993): each layer reads everything before it."""

    def __init__(self, layers: int = 4, growth: int = 6) -> None:
        super().__init__()
        widths = [8 + i * growth for i in range(layers + 1)]
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(w) for w in widths)
        self.convs = nn.ModuleList(nn.Conv2d(w, growth, 3, padding=1, bias=False) for w in widths[:-1])
        self.fc = nn.Linear(widths[-1], 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.fc(F.relu(self.norms[-1](x)).mean((2, 3)))


class PostActivation(nn.Module):
    """Blocks whose convolutions read the stream itself, with nothing of their own before them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.first = nn.ModuleList(nn.Conv2d(12, 10, 3, padding=1) for _ in range(3))
        self.second = nn.ModuleList(nn.Conv2d(10, 12, 3, padding=1) for _ in range(3))
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        for first, second in zip(self.first, self.second, strict=True):
            x = F.relu(x + second(F.relu(first(x))))
        return self.head(x)


class Transformer(nn.Module):
    """Two encoder layers whose projections read a normalised residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(3))
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.down(F.gelu(self.up(self.norms[1](x))))
        return self.head(self.norms[2](x))


class WritesInPlace(nn.Module):
    """The ReLU in front of the block's convolution writes into the stream itself, which the addition reads after it."""

    def __init__(self, as_module: bool) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 4, 1)
        self.conv = nn.Conv2d(12, 12, 3, padding=1)
        self.relu = nn.ReLU(inplace=True) if as_module else F.relu_

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.conv(self.relu(x))
        return self.head(x + y)


class SharedReader(nn.Module):
    """One convolution reads two streams: it has one set of columns, so both selections are one choice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.other = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.reader = nn.Conv2d(12, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = x + self.other(x)
        return self.reader(x) * self.reader(y)


class SqueezeExcite(nn.Module):
    """The gate of an inner width is no addition: the width stays one group, which can be cut as ever."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.project = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 4, 1)
        self.squeeze, self.excite = nn.Conv2d(12, 6, 1), nn.Conv2d(6, 12, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.expand(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.project(x * gate)


def randomised(model: nn.Module) -> nn.Module:
    """In eval mode, with batch norms that are no identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()
