"""The papers' networks: CIFAR ResNets, DenseNet-40, VGG-16 and others, as their code builds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models
from torchvision.models.segmentation import deeplabv3_resnet50

from benchmarks.cifar import cifar_resnet


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


_DILATIONS = ((2, 2, 2), (4, 4, 8, 8, 16, 16))


def _norm(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels, eps=1e-3), nn.PReLU(channels))


def _dab_conv(
    channels: int, out: int, kernel: tuple[int, int], stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Conv2d:
    padding = (dilation * (kernel[0] // 2), dilation * (kernel[1] // 2))
    return nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, bias=False)


class DABModule(nn.Module):
    """3x3 to half the width, two branches of asymmetric depthwise convolutions (one dilated), 1x1 back, and a sum."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        half = channels // 2
        self.reduce = nn.Sequential(_norm(channels), _dab_conv(channels, half, (3, 3)), _norm(half))
        self.near, self.far = (self._branch(half, d) for d in (1, dilation))
        self.expand = nn.Sequential(_norm(half), _dab_conv(half, channels, (1, 1)))

    @staticmethod
    def _branch(width: int, dilation: int) -> nn.Sequential:
        vertical = _dab_conv(width, width, (3, 1), dilation=dilation, groups=width)
        horizontal = _dab_conv(width, width, (1, 3), dilation=dilation, groups=width)
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
        self.conv = _dab_conv(channels, out - channels if self.has_pool else out, (3, 3), 2)
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
        first = [nn.Sequential(_dab_conv(c, 32, (3, 3), s), _norm(32)) for c, s in ((3, 2), (32, 1), (32, 1))]
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


class DeepLab(nn.Module):
    """DeepLabV3 on a ResNet-50, with its logits alone in the place of torchvision's dict."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.network = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=classes, aux_loss=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, H, W) to logits (N, classes, H, W)."""
        logits: torch.Tensor = self.network(x)["out"]
        return logits


_IMAGE = (3, 32, 32)


@dataclass(frozen=True)
class PaperNetwork:
    """How to build a network for a number of classes, and the shape of one input."""

    build: Callable[[int], nn.Module]
    shape: tuple[int, ...]


PAPER_NETWORKS = {
    "VGG-16": PaperNetwork(lambda classes: CifarVGG(16, classes), _IMAGE),
    "VGG-19": PaperNetwork(lambda classes: CifarVGG(19, classes), _IMAGE),
    "ResNet-56": PaperNetwork(lambda classes: cifar_resnet(56, classes), _IMAGE),
    "ResNet-110": PaperNetwork(lambda classes: cifar_resnet(110, classes), _IMAGE),
    "ResNet-164": PaperNetwork(lambda classes: CifarPreResNet(164, classes), _IMAGE),
    "DenseNet-40": PaperNetwork(lambda classes: CifarDenseNet(40, 12, classes), _IMAGE),
    "ResNet-50": PaperNetwork(lambda classes: models.resnet50(num_classes=classes), (3, 224, 224)),
    "MobileFaceNet": PaperNetwork(MobileFaceNet, (3, 112, 112)),
    "U-Net": PaperNetwork(UNet, (3, 64, 64)),
    "DABNet": PaperNetwork(DABNet, (3, 128, 256)),
    "DeepLabV3": PaperNetwork(DeepLab, (3, 65, 65)),
}


def paper_network(name: str, classes: int = 10, *, seed: int = 0) -> nn.Module:
    """The network in eval mode with random weights; for MobileFaceNet ``classes`` is the size of the embedding.

    Raises:
        ValueError: there is no network of that name.
    """
    if name not in PAPER_NETWORKS:
        raise ValueError(f"unknown network {name!r}: choose one of {', '.join(PAPER_NETWORKS)}")
    torch.manual_seed(seed)
    return PAPER_NETWORKS[name].build(classes).eval()
