"""Padding, pooling, resampling, and moves between channels and space."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.rules.cases import IMAGE, SERIES, TOKENS, VECTOR, VOLUME, Case, Layout, Op, everywhere, module_case, op_case

_RANKS: dict[int, Layout] = {1: SERIES, 2: IMAGE, 3: VOLUME}


class ShortcutA(nn.Module):
    """A parameter-free shortcut: every second position, the channels padded with zeros on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        shortcut = F.pad(h[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4), "constant", 0)
        return self.last((self.norm(self.conv(h)) + shortcut).relu())


class Unpooled(nn.Module):
    """Max pooling with indices and its inverse."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.pool = getattr(nn, f"MaxPool{rank}d")(2, return_indices=True)
        self.unpool = getattr(nn, f"MaxUnpool{rank}d")(2)

    def forward(self, h: Tensor) -> Tensor:
        pooled, indices = self.pool(h)
        return self.unpool(pooled, indices)


class SuperResolution(nn.Module):
    """Pixel shuffle after a convolution, as super-resolution nets end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 1), nn.Conv2d(3, 4, 1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.shuffle(self.up(self.first(x))))


class Pyramid(nn.Module):
    """A coarse branch resampled to the size of a fine one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.coarse, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h + F.interpolate(self.coarse(x), size=h.shape[-2:], mode="bilinear", align_corners=False))


def _unfolded(h: Tensor) -> Tensor:
    """Every 3 x 3 neighbourhood as channels, summed over the window."""
    batch, channels, height, width = h.shape
    patches = F.unfold(h, 3, padding=1).view(batch, channels, 9, height, width)
    return patches.sum(2)


def _folded(h: Tensor) -> Tensor:
    columns = F.unfold(h, kernel_size=2, stride=2)
    return F.fold(columns * 2, h.shape[2:], kernel_size=2, stride=2)


def _sampled(h: Tensor) -> Tensor:
    grid = torch.zeros(h.shape[0], 4, 4, 2, dtype=h.dtype) + 0.2
    return F.grid_sample(h, grid, align_corners=False)


def _through_spectra(h: Tensor) -> Tensor:
    """Each channel's signal as a spectrum, damped and turned back."""
    window = torch.ones(4, dtype=h.dtype)
    spectra = torch.stft(h.flatten(0, 1), 4, 2, window=window, return_complex=True)
    return torch.istft(spectra * 0.5, 4, 2, window=window, length=h.shape[-1]).view(h.shape) + h


def _magnitudes(h: Tensor) -> Tensor:
    window = torch.ones(4, dtype=h.dtype)
    spectra = torch.stft(h.flatten(0, 1), 4, 2, window=window, return_complex=True).abs()
    return spectra.view(*h.shape[:2], *spectra.shape[1:]).flatten(2)


def _fractional(rank: int) -> Op:
    """With the samples given, one for each channel; otherwise it is random."""
    function = getattr(F, f"fractional_max_pool{rank}d")

    def op(h: Tensor) -> Tensor:
        samples = torch.linspace(0.1, 0.9, h.shape[1] * rank, dtype=h.dtype).view(1, h.shape[1], rank)
        return function(h, 2, output_size=2, _random_samples=samples.expand(h.shape[0], -1, -1))  # type: ignore[no-any-return]

    return op


def _functions(rank: int) -> dict[str, Op]:
    def named(name: str) -> Callable[..., Tensor]:
        return getattr(F, f"{name}{rank}d")  # type: ignore[no-any-return]

    return {
        "avg_pool": lambda h: named("avg_pool")(h, 2),
        "max_pool": lambda h: named("max_pool")(h, 2, stride=1),
        "adaptive_avg_pool": lambda h: named("adaptive_avg_pool")(h, 1),
        "adaptive_max_pool": lambda h: named("adaptive_max_pool")(h, 2),
        "lp_pool": lambda h: named("lp_pool")(h, 2, 2),
        "max_pool and flatten": lambda h: named("adaptive_max_pool")(h, 1).flatten(1),
        "with indices": lambda h: named("max_pool")(h, 2, return_indices=True)[0],
    }


_PADS: dict[str, tuple[Layout, Op]] = {
    "space": (IMAGE, lambda h: F.pad(h, (1, 1, 2, 0))),
    "reflected space": (IMAGE, lambda h: F.pad(h, (1, 1, 1, 1), mode="reflect")),
    "replicated space": (
        IMAGE,
        lambda h: F.pad(h, [1, 1], mode="replicate") if h.dim() == 3 else F.pad(h, (1, 0, 1, 0), "replicate"),
    ),
    "circular space": (IMAGE, lambda h: F.pad(h, (1, 1, 1, 1), mode="circular")),
    "cropped space": (IMAGE, lambda h: F.pad(h, (-1, -1, 0, -1))),
    "channels": (IMAGE, lambda h: F.pad(h, (0, 0, 0, 0, 2, 3))),
    "channels with a value": (IMAGE, lambda h: F.pad(h, (0, 0, 0, 0, 0, 4), value=0.0)),
    "last dim": (VECTOR, lambda h: F.pad(h, (2, 2))),
    "constant_pad_nd": (VECTOR, lambda h: torch.constant_pad_nd(h, (0, 4), 0.0)),
    "by dynamic amounts": (IMAGE, lambda h: F.pad(h, (0, h.shape[3] % 4, 0, h.shape[2] % 4))),
    "tokens": (TOKENS, lambda h: F.pad(h, (0, 0, 1, 2))),
    "cropped channels": (VECTOR, lambda h: F.pad(h, (-2, -1))),
    "channels of their own width": (VECTOR, lambda h: F.pad(h, (0, h.shape[1])) * F.pad(h, (0, h.shape[1]))),
}
_MOVES: dict[str, tuple[Layout, Op]] = {
    "pixel_shuffle": (IMAGE, lambda h: F.pixel_shuffle(h, 2)),
    "pixel_unshuffle": (IMAGE, lambda h: F.pixel_unshuffle(h, 2)),
    "pixel shuffle and back": (IMAGE, lambda h: torch.pixel_unshuffle(torch.pixel_shuffle(h, upscale_factor=2), 2)),
    "channel_shuffle": (IMAGE, lambda h: F.channel_shuffle(h, 4)),
    "native_channel_shuffle": (IMAGE, lambda h: torch.native_channel_shuffle(h, 2)),
    "unfold": (IMAGE, _unfolded),
    "unfold to columns": (IMAGE, lambda h: F.unfold(h, 2, stride=2)),
    "fold": (IMAGE, _folded),
    "unfold of a dim": (IMAGE, lambda h: h.unfold(2, 2, 2).unfold(3, 2, 2).sum((-1, -2))),
    "unfold of tokens": (TOKENS, lambda h: h.unfold(1, 3, 1).mean(-1)),
    "interpolate": (IMAGE, lambda h: F.interpolate(h, scale_factor=2)),
    "interpolate, bilinear": (IMAGE, lambda h: F.interpolate(h, size=(5, 7), mode="bilinear", align_corners=True)),
    "interpolate, bicubic": (IMAGE, lambda h: F.interpolate(h, scale_factor=(2, 1.5), mode="bicubic")),
    "upsample": (IMAGE, lambda h: F.upsample(h, scale_factor=2, mode="nearest")),
    "grid_sample": (IMAGE, _sampled),
    "stft and istft": (SERIES, _through_spectra),
    "stft": (SERIES, _magnitudes),
}
_MODULES: dict[str, tuple[Layout, Callable[[], nn.Module]]] = {
    "ZeroPad2d": (IMAGE, lambda: nn.ZeroPad2d((1, 0, 1, 0))),
    "ConstantPad1d": (SERIES, lambda: nn.ConstantPad1d(1, 0.0)),
    "ConstantPad2d": (IMAGE, lambda: nn.ConstantPad2d((0, 0, 1, 1), 0.5)),
    "ConstantPad2d of channels": (IMAGE, lambda: nn.ConstantPad2d((0, 0, 0, 0, 2, 2), 0.0)),
    "ConstantPad3d": (VOLUME, lambda: nn.ConstantPad3d(1, 0.0)),
    "ReflectionPad2d": (IMAGE, lambda: nn.ReflectionPad2d(1)),
    "ReplicationPad2d": (IMAGE, lambda: nn.ReplicationPad2d(1)),
    "CircularPad2d": (IMAGE, lambda: nn.CircularPad2d(1)),
    "Upsample": (IMAGE, lambda: nn.Upsample(scale_factor=2, mode="bilinear")),
    "UpsamplingNearest2d": (IMAGE, lambda: nn.UpsamplingNearest2d(scale_factor=2)),
    "UpsamplingBilinear2d": (IMAGE, lambda: nn.UpsamplingBilinear2d(scale_factor=2)),
    "PixelShuffle": (IMAGE, lambda: nn.PixelShuffle(2)),
    "PixelUnshuffle": (IMAGE, lambda: nn.PixelUnshuffle(2)),
    "Unfold": (IMAGE, lambda: nn.Unfold(2, stride=2)),
    "Fold": (IMAGE, lambda: nn.Sequential(nn.Unfold(2, stride=2), nn.Fold((6, 6), 2, stride=2))),
}


def _pools(rank: int) -> list[Case]:
    layout = _RANKS[rank]
    cases = [op_case(f"pool{rank}d/{n}", layout, op) for n, op in _functions(rank).items()]
    for kind, argument in (("AvgPool", 2), ("MaxPool", 2), ("AdaptiveAvgPool", 1), ("AdaptiveMaxPool", 2)):
        cls = getattr(nn, f"{kind}{rank}d")
        cases.append(module_case(f"pool{rank}d/{kind}", layout, lambda cls=cls, argument=argument: cls(argument)))
    cases.append(module_case(f"pool{rank}d/LPPool", layout, lambda: getattr(nn, f"LPPool{rank}d")(2, 2)))
    cases.append(module_case(f"pool{rank}d/MaxUnpool", layout, lambda: Unpooled(rank)))
    return cases


CASES = [
    *(case for rank in _RANKS for case in _pools(rank)),
    op_case("pool2d/fractional_max_pool", IMAGE, _fractional(2)),
    op_case("pool3d/fractional_max_pool", VOLUME, _fractional(3)),
    *(op_case(f"pad/{n}", layout, op) for n, (layout, op) in _PADS.items()),
    *(op_case(f"move/{n}", layout, op) for n, (layout, op) in _MOVES.items()),
    *(module_case(f"window/{n}", layout, make, fixed_size=n == "Fold") for n, (layout, make) in _MODULES.items()),
    *everywhere("window/max pool of unit stride", IMAGE, lambda: nn.MaxPool2d(3, 1, 1)),
    *everywhere("window/unfolded neighbourhoods", IMAGE, lambda: _unfolded),
    Case("pad/shortcut of option A", ShortcutA, IMAGE.sample, ("first.weight", "conv.weight"), resized=IMAGE.resized),
    Case("move/super resolution", SuperResolution, IMAGE.sample, ("first.weight", "up.weight"), resized=IMAGE.resized),
    Case("move/pyramid", Pyramid, IMAGE.sample, ("first.weight", "coarse.weight"), resized=IMAGE.resized),
]
