"""Steps over positions: pooling, resizing, pixel shuffles, reductions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.nets.coupling import ALIVE, Axis, Coupling
from tests.nets.steps.step import Kept, Step

POOLS: dict[str, str] = {
    "max": "F.max_pool2d({x}, 2)",
    "average": "F.avg_pool2d({x}, 2)",
    "adaptive": "F.adaptive_avg_pool2d({x}, 1)",
    "adaptive_max": "F.adaptive_max_pool2d({x}, 1)",
    "same": "F.max_pool2d({x}, 3, stride=1, padding=1)",
}
POOL_MODULES: dict[str, str] = {
    "max": "nn.MaxPool2d(2)",
    "average": "nn.AvgPool2d(2)",
    "adaptive": "nn.AdaptiveAvgPool2d(1)",
    "adaptive_max": "nn.AdaptiveMaxPool2d((1, 1))",
    "same": "nn.AvgPool2d(3, stride=1, padding=1)",
}


@dataclass(frozen=True)
class Pool(Step):
    """Pooling over the last two dims: by 2, to 1, or at the same size."""

    out: str
    source: str
    kind: str
    module: str = ""

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def init_lines(self) -> tuple[str, ...]:
        return (f"self.{self.module} = {POOL_MODULES[self.kind]}",) if self.module else ()

    def forward_line(self) -> str:
        if self.module:
            return f"{self.out} = self.{self.module}({self.source})"
        return f"{self.out} = {POOLS[self.kind].format(x=self.source)}"

    def couple(self, net: Coupling) -> None:
        *others, height, width = net.values[self.source]
        made = []
        for axis in (height, width):
            net.fix(axis)
            size = {"same": len(axis), "adaptive": 1, "adaptive_max": 1}.get(self.kind, len(axis) // 2)
            made.append(net.fixed(size))
        net.define(self.out, (*others, *made))


@dataclass(frozen=True)
class Interpolate(Step):
    """Resize an image by 2."""

    out: str
    source: str
    bilinear: bool = False

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def forward_line(self) -> str:
        mode = 'mode="bilinear", align_corners=False' if self.bilinear else 'mode="nearest"'
        return f"{self.out} = F.interpolate({self.source}, scale_factor=2, {mode})"

    def couple(self, net: Coupling) -> None:
        *others, height, width = net.values[self.source]
        net.fix((*height, *width))
        net.define(self.out, (*others, net.fixed(2 * len(height)), net.fixed(2 * len(width))))


@dataclass(frozen=True)
class PixelShuffle(Step):
    """``F.pixel_shuffle`` by 2: four channels make one; ``inverse`` is ``F.pixel_unshuffle``."""

    out: str
    source: str
    inverse: bool = False

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def forward_line(self) -> str:
        return f"{self.out} = F.pixel_{'un' if self.inverse else ''}shuffle({self.source}, 2)"

    def couple(self, net: Coupling) -> None:
        batch, channels, height, width = net.values[self.source]
        net.fix((*height, *width))
        if self.inverse:
            made = tuple(cell for cell in channels for _ in range(4))
            sizes = (len(height) // 2, len(width) // 2)
        else:
            made = channels[::4]
            for part in range(1, 4):
                net.tie(made, channels[part::4])
            sizes = (2 * len(height), 2 * len(width))
        net.define(self.out, (batch, made, *(net.fixed(size) for size in sizes)))


@dataclass(frozen=True)
class Reduce(Step):
    """``mean``, ``sum`` or ``amax`` over dims; over channels, what is left is reduced by itself."""

    out: str
    source: str
    dims: tuple[int, ...]
    function: str = "mean"
    keepdim: bool = False

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def forward_line(self) -> str:
        keepdim = ", keepdim=True" if self.keepdim else ""
        return f"{self.out} = {self.source}.{self.function}(dim={self.dims}{keepdim})"

    def normalised(self, net: Coupling) -> Axis:
        return () if self.function == "sum" else self.contracted(net)

    def contracted(self, net: Coupling) -> Axis:
        return tuple(cell for dim in self.dims for cell in net.values[self.source][dim])

    def couple(self, net: Coupling) -> None:
        made = []
        for dim, axis in enumerate(net.values[self.source]):
            if dim not in self.dims:
                made.append(axis)
            elif self.keepdim:
                made.append((ALIVE,))
        net.define(self.out, tuple(made))


@dataclass(frozen=True)
class GLU(Step):
    """``F.glu`` over a dim: the first half times the sigmoid of the second."""

    out: str
    source: str
    dim: int

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def forward_line(self) -> str:
        return f"{self.out} = F.glu({self.source}, dim={self.dim})"

    def couple(self, net: Coupling) -> None:
        axes = net.values[self.source]
        axis = axes[self.dim]
        half = len(axis) // 2
        net.tie(axis[:half], axis[half:])
        net.define(self.out, (*axes[: self.dim], axis[:half], *axes[self.dim + 1 :]))


@dataclass(frozen=True)
class ChannelShuffle(Step):
    """``nn.ChannelShuffle``: channel ``i`` of group ``g`` becomes channel ``g`` of group ``i``."""

    out: str
    source: str
    module: str
    groups: int

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def init_lines(self) -> tuple[str, ...]:
        return (f"self.{self.module} = nn.ChannelShuffle({self.groups})",)

    def forward_line(self) -> str:
        return f"{self.out} = self.{self.module}({self.source})"

    def couple(self, net: Coupling) -> None:
        axes = net.values[self.source]
        width = len(axes[1]) // self.groups
        groups = net.note(f"{self.module}#groups", net.new(self.groups))
        net.product(axes[1], (groups, net.note(f"{self.module}#width", net.new(width))))
        shuffled = tuple(axes[1][group * width + at] for at in range(width) for group in range(self.groups))
        net.define(self.out, (axes[0], shuffled, *axes[2:]))

    def narrowed(self, kept: Kept) -> Step:
        return replace(self, groups=kept.size(f"{self.module}#groups", 0))
