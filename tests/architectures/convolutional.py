"""Images, volumes, sound: U-Nets, super-resolution, detectors' blocks, separable and dilated convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.architectures.architecture import Architecture


def _image(batch: int) -> Tensor:
    return torch.randn(batch, 3, 16, 16)


def _larger(batch: int) -> Tensor:
    return torch.randn(batch, 3, 24, 32)


def _conv(inner: int, outer: int, stride: int = 1) -> nn.Sequential:
    layers = [nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.SiLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Two levels; the skips are concatenated behind transposed convolutions."""

    def __init__(self, top: int, middle: int, bottom: int, up: int, up_top: int, joined: int, joined_top: int) -> None:
        super().__init__()
        self.top, self.middle, self.bottom = _conv(3, top), _conv(top, middle), _conv(middle, bottom)
        self.up = nn.ConvTranspose2d(bottom, up, 2, 2)
        self.joined = _conv(middle + up, joined)
        self.up_top = nn.ConvTranspose2d(joined, up_top, 2, 2)
        self.joined_top = _conv(top + up_top, joined_top)
        self.head = nn.Conv2d(joined_top, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        top = self.top(x)
        middle = self.middle(F.max_pool2d(top, 2))
        bottom = self.bottom(F.max_pool2d(middle, 2))
        joined = self.joined(torch.cat([middle, self.up(bottom)], dim=1))
        return self.head(self.joined_top(torch.cat([self.up_top(joined), top], dim=1)))


class SuperResolution(nn.Module):
    """Residual blocks and a pixel shuffle: each channel of the picture above needs four of the one below."""

    def __init__(self, trunk: int, first: int, second: int, up: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, trunk, 3, padding=1)
        self.first = nn.Sequential(nn.Conv2d(trunk, first, 3, padding=1), nn.ReLU(), nn.Conv2d(first, trunk, 1))
        self.second = nn.Sequential(nn.Conv2d(trunk, second, 3, padding=1), nn.ReLU(), nn.Conv2d(second, trunk, 1))
        self.up = nn.Sequential(nn.Conv2d(trunk, 4 * up, 3, padding=1), nn.PixelShuffle(2), nn.PReLU())
        self.tail = nn.Conv2d(up, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.head(x)
        h = h + 0.1 * self.first(h)
        h = h + 0.1 * self.second(h)
        return self.tail(self.up(h)) + F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class Detector(nn.Module):
    """A split whose halves are concatenated with what is computed of them, pooled pyramids, and several heads."""

    def __init__(self, stem: int, left: int, right: int, inner: int, fused: int, reduced: int, neck: int) -> None:
        super().__init__()
        self.widths = [left, right]
        self.stem, self.split = _conv(3, stem, 2), _conv(stem, left + right)
        self.inner = nn.Sequential(_conv(right, inner), _conv(inner, right))
        self.fused = _conv(left + 2 * right, fused)
        self.reduced = nn.Conv2d(fused, reduced, 1)
        self.neck = _conv(4 * reduced, neck, 2)
        self.boxes = nn.Conv2d(neck, 4, 1)
        self.classes = nn.Conv2d(neck, 5, 1)
        self.fine = nn.Conv2d(fused, 9, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        parts = list(self.split(self.stem(x)).split(self.widths, 1))
        parts.append(parts[1] + self.inner(parts[1]))
        fused = self.fused(torch.cat(parts, 1))
        pools = [self.reduced(fused)]
        for _ in range(3):
            pools.append(F.max_pool2d(pools[-1], 5, 1, 2))
        neck = self.neck(torch.cat(pools, 1))
        coarse = torch.cat([self.boxes(neck), self.classes(neck)], 1)
        levels = [t.flatten(2).transpose(1, 2) for t in (self.fine(fused), coarse)]
        boxes, classes = torch.cat(levels, 1).split([4, 5], -1)
        return {"boxes": boxes, "classes": classes.sigmoid()}


class Speech(nn.Module):
    """Gated, separable and causal dilated convolutions over time, and attentive pooling of statistics."""

    def __init__(self, gated: int, spread: int, causal: int, attention: int) -> None:
        super().__init__()
        self.gated = nn.Sequential(nn.Conv1d(8, 2 * gated, 5, padding=2), nn.GLU(dim=1), nn.BatchNorm1d(gated))
        self.depthwise = nn.Conv1d(gated, gated, 7, padding=3, groups=gated)
        self.pointwise = nn.Sequential(nn.Conv1d(gated, spread, 1), nn.BatchNorm1d(spread), nn.ReLU())
        self.causal = nn.Conv1d(spread, causal, 3, padding=4, dilation=2)
        self.attention = nn.Sequential(nn.Conv1d(causal, attention, 1), nn.Tanh(), nn.Conv1d(attention, 1, 1))
        self.head = nn.Linear(2 * causal, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.pointwise(self.depthwise(self.gated(x)))
        h = self.causal(h)[..., :-4].relu()
        weights = self.attention(h).softmax(-1)
        mean = (h * weights).sum(-1)
        deviation = ((h * h * weights).sum(-1) - mean**2).clamp(min=1e-6).sqrt()
        return self.head(torch.cat([mean, deviation], 1))


class Video(nn.Module):
    """Convolutions over space, then over time, with a shortcut."""

    def __init__(self, space: int, trunk: int, inner: int) -> None:
        super().__init__()
        self.space = nn.Sequential(nn.Conv3d(3, space, (1, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(space), nn.ReLU())
        self.time = nn.Conv3d(space, trunk, (3, 1, 1), padding=(1, 0, 0))
        self.inner = nn.Sequential(nn.Conv3d(trunk, inner, 3, padding=1), nn.ReLU(), nn.Conv3d(inner, trunk, 1))
        self.head = nn.Linear(trunk, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.time(self.space(x))
        return self.head(F.adaptive_avg_pool3d(F.relu(h + self.inner(h)), 1).flatten(1))


class AutoEncoder(nn.Module):
    """Strided convolutions to a code, transposed ones with output padding and groups back."""

    def __init__(self, down: int, code: int, groups: int, into: int, out: int) -> None:
        super().__init__()
        up = groups * into
        self.down, self.bottom = nn.Conv2d(3, down, 3, 2, 1), nn.Conv2d(down, code, 3, 2, 1)
        self.up = nn.ConvTranspose2d(code, up, 3, 2, 1, output_padding=1)
        self.grouped = nn.ConvTranspose2d(up, groups * out, 3, 1, 1, groups=groups)
        self.last = nn.ConvTranspose2d(groups * out, 3, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        code = self.bottom(self.down(x).relu()).tanh()
        return self.last(self.grouped(self.up(code).relu()).relu())


class MultiTask(nn.Module):
    """One trunk; a class, a depth map and an embedding that is concatenated with the logits."""

    def __init__(self, trunk: int, dense: int, embedded: int, hidden: int) -> None:
        super().__init__()
        self.trunk = _conv(3, trunk)
        self.depth = nn.Sequential(_conv(trunk, dense), nn.Conv2d(dense, 1, 1), nn.Softplus())
        self.embedding = nn.Linear(trunk, embedded)
        self.classes = nn.Linear(embedded, 3)
        self.hidden = nn.Linear(embedded + 3, hidden)
        self.age = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.trunk(x)
        embedded = self.embedding(h.mean((2, 3))).relu()
        classes = self.classes(embedded)
        age = self.age(self.hidden(torch.cat([embedded, classes], 1)).relu())
        return {"depth": self.depth(h), "classes": classes, "age": age}


NETWORKS = [
    Architecture(
        "unet",
        UNet,
        {"top": 8, "middle": 12, "bottom": 16, "up": 10, "up_top": 6, "joined": 14, "joined_top": 8},
        {
            "top": "top.0",
            "middle": "middle.0",
            "bottom": "bottom.0",
            "up": "up",
            "up_top": "up_top",
            "joined": "joined.0",
            "joined_top": "joined_top.0",
        },
        _image,
        _larger,
    ),
    Architecture(
        "super-resolution",
        SuperResolution,
        {"trunk": 12, "first": 8, "second": 10, "up": 6},
        {"trunk": "head", "first": "first.0", "second": "second.0", "up": "up.0"},
        _image,
        _larger,
    ),
    Architecture(
        "detector",
        Detector,
        {"stem": 8, "left": 8, "right": 8, "inner": 6, "fused": 12, "reduced": 6, "neck": 10},
        {
            "stem": "stem.0",
            "left": "split.0/0",
            "right": "split.0/1",
            "inner": "inner.0.0",
            "fused": "fused.0",
            "reduced": "reduced",
            "neck": "neck.0",
        },
        _image,
        _larger,
    ),
    Architecture(
        "speech",
        Speech,
        {"gated": 10, "spread": 12, "causal": 8, "attention": 6},
        {"gated": "gated.0", "spread": "pointwise.0", "causal": "causal", "attention": "attention.0"},
        lambda n: torch.randn(n, 8, 24),
        lambda n: torch.randn(n, 8, 31),
    ),
    Architecture(
        "video",
        Video,
        {"space": 8, "trunk": 10, "inner": 12},
        {"space": "space.0", "trunk": "time", "inner": "inner.0"},
        lambda n: torch.randn(n, 3, 4, 8, 8),
        lambda n: torch.randn(n, 3, 6, 10, 8),
    ),
    Architecture(
        "autoencoder",
        AutoEncoder,
        {"down": 8, "code": 12, "groups": 2, "into": 6, "out": 6},
        {"down": "down", "code": "bottom", "groups": "up/0", "into": "up/1", "out": "grouped"},
        _image,
        _larger,
    ),
    Architecture(
        "multi-task",
        MultiTask,
        {"trunk": 12, "dense": 8, "embedded": 10, "hidden": 6},
        {"trunk": "trunk.0", "dense": "depth.0.0", "embedded": "embedding", "hidden": "hidden"},
        _image,
        _larger,
    ),
]
