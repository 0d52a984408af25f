"""torchvision's own ops and blocks, and Fourier transforms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision import ops

from tests.rules.cases import IMAGE, TOKENS, VECTOR, Case, Layout, Op, everywhere, module_case, op_case


class Deformed(nn.Module):
    """A deformable convolution with offsets, and a mask, that layers make of the input."""

    def __init__(self, modulated: bool, groups: int = 1) -> None:
        super().__init__()
        self.first, self.offsets = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 18, 1)
        self.mask = nn.Conv2d(3, 9, 1) if modulated else None
        self.deformed, self.last = ops.DeformConv2d(8, 12, 3, padding=1, groups=groups), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        mask = None if self.mask is None else self.mask(x).sigmoid()
        return self.last(self.deformed(self.first(x), self.offsets(x), mask).relu())


class Regions(nn.Module):
    """Channels pooled from regions of the image."""

    def __init__(self, pool: Callable[..., Tensor]) -> None:
        super().__init__()
        self.pool = pool
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor, regions: Tensor) -> Tensor:
        return self.last(self.pool(self.first(x), regions, 3))


def _with_regions(batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 3, 6, 6), torch.tensor([[0, 0.0, 0.0, 3.0, 3.0], [1, 1.0, 1.0, 4.0, 5.0]])


_TRANSFORMS: dict[str, tuple[Layout, Op]] = {
    "fft of tokens": (TOKENS, lambda h: torch.fft.fft(h, dim=1).real),
    "rfft and back": (TOKENS, lambda h: torch.fft.irfft(torch.fft.rfft(h, dim=1) * 2, n=h.shape[1], dim=1)),
    "ifft": (TOKENS, lambda h: torch.fft.ifft(h, None, 1).abs()),
    "hfft": (TOKENS, lambda h: torch.fft.hfft(torch.fft.ihfft(h, dim=1), n=h.shape[1], dim=1)),
    "rfft2 of an image": (IMAGE, lambda h: torch.fft.irfft2(torch.fft.rfft2(h) * 0.5, s=h.shape[-2:])),
    "fft2": (IMAGE, lambda h: torch.fft.ifft2(torch.fft.fft2(h, dim=(2, 3)), dim=(-2, -1)).real),
    "fftn": (IMAGE, lambda h: torch.fft.ifftn(torch.fft.fftn(h, s=h.shape[2:]), dim=(2, 3)).real),
    "rfftn": (IMAGE, lambda h: torch.fft.irfftn(torch.fft.rfftn(h, dim=(2, 3)), s=h.shape[2:], dim=(2, 3))),
    "fftshift": (IMAGE, lambda h: torch.fft.ifftshift(torch.fft.fftshift(h, dim=(2, 3)) * 2, dim=(2, 3))),
}

CASES = [
    *(op_case(f"fourier/{n}", layout, op) for n, (layout, op) in _TRANSFORMS.items()),
    Case(
        "vision/deformable",
        lambda: Deformed(False),
        IMAGE.sample,
        ("first.weight", "deformed.weight"),
        resized=IMAGE.resized,
    ),
    Case(
        "vision/modulated",
        lambda: Deformed(True),
        IMAGE.sample,
        ("first.weight", "deformed.weight"),
        resized=IMAGE.resized,
    ),
    Case("vision/deformable in groups", lambda: Deformed(False, 4), IMAGE.sample, ("first.weight", "deformed.weight")),
    Case("vision/roi_align", lambda: Regions(ops.roi_align), _with_regions),
    Case("vision/roi_pool", lambda: Regions(ops.roi_pool), _with_regions),
    *everywhere(
        "vision/squeeze and excite",
        IMAGE,
        lambda: ops.SqueezeExcitation(8, 3),
        free=("first.weight", "middle.fc1.weight"),
    ),
    module_case("vision/frozen batch norm", IMAGE, lambda: ops.FrozenBatchNorm2d(8)),
    module_case(
        "vision/convolution block",
        IMAGE,
        lambda: ops.Conv2dNormActivation(8, 6),
        free=("first.weight", "middle.0.weight"),
    ),
    module_case("vision/stochastic depth", IMAGE, lambda: ops.StochasticDepth(0.5, "row")),
    module_case("vision/drop block", IMAGE, lambda: ops.DropBlock2d(0.5, 3)),
    module_case(
        "vision/permute", IMAGE, lambda: nn.Sequential(ops.Permute([0, 2, 3, 1]), nn.GELU(), ops.Permute([0, 3, 1, 2]))
    ),
    module_case("vision/perceptron", VECTOR, lambda: ops.MLP(8, [7, 6]), free=("first.weight", "middle.0.weight")),
]
