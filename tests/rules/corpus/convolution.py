"""Convolutions of one to three dims, plain and transposed, grouped and depthwise, as modules and on bare weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.rules.cases import IMAGE, SERIES, VOLUME, Case, Layout, module_case

BOTH = ("first.weight", "middle.weight")
TRANSPOSED = ("first.weight", "middle.weight", "middle.weight:1")


class Functional(nn.Module):
    """A functional convolution on bare parameters."""

    def __init__(
        self, function: Callable[..., Tensor], weight: tuple[int, ...], bias: int | None, **options: Any
    ) -> None:
        super().__init__()
        self.function, self.options = function, options
        self.weight = nn.Parameter(torch.randn(weight))
        self.bias = None if bias is None else nn.Parameter(torch.randn(bias))

    def forward(self, h: Tensor) -> Tensor:
        return self.function(h, self.weight, self.bias, **self.options)


class Positional(Functional):
    """The same with stride, padding, dilation and groups given by position."""

    def forward(self, h: Tensor) -> Tensor:
        return F.conv2d(h, self.weight, self.bias, 1, 1, 1, self.options["groups"])


class Standardised(nn.Conv2d):
    """A user's subclass that changes its weight before use."""

    def forward(self, h: Tensor) -> Tensor:  # type: ignore[override]
        return F.conv2d(h, self.weight * 2.0, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Inherited(nn.Conv2d):
    """A user's subclass with the forward of its parent."""


class Dynamic(nn.Module):
    """A kernel computed from the input by a small network, one for each sample of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.kernel, self.last = nn.Conv2d(3, 8, 1), nn.Linear(3, 8 * 9), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        kernels = self.kernel(x.mean((2, 3))).view(batch * 8, 1, 3, 3)
        h = self.first(x).reshape(1, batch * 8, height, width)
        return self.last(F.conv2d(h, kernels, padding=1, groups=batch * 8).view(batch, 8, height, width))


class Pyramid(nn.Module):
    """A stack: pointwise, depthwise, pointwise, as inverted residuals are."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.expand, self.depth, self.project = (
            nn.Conv2d(6, 12, 1),
            nn.Conv2d(12, 12, 3, padding=1, groups=12),
            nn.Conv2d(12, 6, 1),
        )
        self.last = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h + self.project(self.depth(self.expand(h).relu()).relu()))


def _forms(layout: Layout, plain: type[nn.Module], transposed: type[nn.Module], rank: str) -> list[Case]:
    free = BOTH
    return [
        module_case(f"conv{rank}/plain", layout, lambda: plain(8, 6, 3, padding=1), free=free),
        module_case(f"conv{rank}/no bias", layout, lambda: plain(8, 6, 1, bias=False), free=free),
        module_case(f"conv{rank}/strided", layout, lambda: plain(8, 6, 2, stride=2), free=free),
        module_case(f"conv{rank}/grouped", layout, lambda: plain(8, 12, 3, padding=1, groups=4), free=free),
        module_case(f"conv{rank}/depthwise", layout, lambda: plain(8, 8, 3, padding=1, groups=8), free=free),
        module_case(f"conv{rank}/depthwise with a multiplier", layout, lambda: plain(4, 12, 3, groups=4), 4, free=free),
        module_case(f"conv{rank}/transposed", layout, lambda: transposed(8, 6, 2, stride=2), free=TRANSPOSED),
        module_case(f"conv{rank}/transposed, grouped", layout, lambda: transposed(8, 12, 2, groups=4), free=TRANSPOSED),
        module_case(
            f"conv{rank}/transposed, depthwise",
            layout,
            lambda: transposed(8, 8, 3, groups=8, output_padding=1, stride=2),
            free=BOTH,
        ),
    ]


def _image(name: str, middle: Callable[[], Any], **about: Any) -> Case:
    about.setdefault("free", BOTH)
    return module_case(f"conv2d/{name}", IMAGE, middle, **about)


CASES = [
    *_forms(SERIES, nn.Conv1d, nn.ConvTranspose1d, "1d"),
    *_forms(IMAGE, nn.Conv2d, nn.ConvTranspose2d, "2d"),
    *_forms(VOLUME, nn.Conv3d, nn.ConvTranspose3d, "3d"),
    _image("dilated", lambda: nn.Conv2d(8, 6, 3, dilation=2)),
    _image("same padding", lambda: nn.Conv2d(8, 6, 3, padding="same")),
    _image("reflected padding", lambda: nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect")),
    _image("circular padding", lambda: nn.Conv2d(8, 6, 1, padding_mode="circular")),
    _image("rectangular kernel", lambda: nn.Conv2d(8, 6, (1, 3), padding=(0, 1))),
    _image("functional", lambda: Functional(F.conv2d, (6, 8, 3, 3), 6, padding=1)),
    _image("functional, grouped", lambda: Functional(F.conv2d, (6, 4, 3, 3), None, padding="same", groups=2)),
    _image("functional, positional arguments", lambda: Positional(F.conv2d, (8, 1, 3, 3), 8, groups=8)),
    _image("functional torch.conv2d", lambda: Functional(torch.conv2d, (12, 2, 1, 1), 12, groups=4)),
    _image(
        "functional, transposed", lambda: Functional(F.conv_transpose2d, (8, 6, 2, 2), 6, stride=2), free=TRANSPOSED
    ),
    _image(
        "functional, transposed, grouped",
        lambda: Functional(F.conv_transpose2d, (8, 3, 2, 2), 12, stride=2, groups=4),
        free=TRANSPOSED,
    ),
    module_case("conv1d/functional", SERIES, lambda: Functional(F.conv1d, (6, 8, 3), 6), free=BOTH),
    module_case(
        "conv1d/functional, transposed", SERIES, lambda: Functional(F.conv_transpose1d, (8, 6, 3), 6), free=TRANSPOSED
    ),
    module_case("conv3d/functional", VOLUME, lambda: Functional(F.conv3d, (6, 8, 1, 1, 1), 6), free=BOTH),
    module_case(
        "conv3d/functional, transposed",
        VOLUME,
        lambda: Functional(F.conv_transpose3d, (8, 6, 1, 1, 1), 6),
        free=TRANSPOSED,
    ),
    _image("subclass with its own forward", lambda: Standardised(8, 6, 3, groups=2)),
    _image("subclass with the parent's forward", lambda: Inherited(8, 6, 3, groups=2)),
    Case(
        "conv2d/kernels from the input", Dynamic, IMAGE.sample, ("first.weight", "kernel.weight"), resized=IMAGE.resized
    ),
    Case(
        "conv2d/inverted residual",
        Pyramid,
        IMAGE.sample,
        ("first.weight", "expand.weight", "depth.weight", "project.weight"),
        resized=IMAGE.resized,
    ),
]
