"""Convolutions: plain, grouped, depthwise and transposed, in one and two dimensions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from tests.nets.coupling import Axes, Axis, Coupling
from tests.nets.steps.step import Kept, Step, join


@dataclass(frozen=True)
class Convolution(Step):
    """``nn.Conv1d/2d`` or ``nn.ConvTranspose1d/2d`` over ``(batch, channels, *positions)``, or its functional form."""

    out: str
    source: str
    module: str
    in_channels: int
    out_channels: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    bias: bool = True
    rank: int = 2
    transposed: bool = False
    functional: bool = False

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    @property
    def padding(self) -> int:
        """Zero padding: keeps the size at stride 1; an even kernel (stride 2 transposed) needs none."""
        return self.kernel // 2 if self.kernel % 2 else 0

    def _parameter(self, kind: str) -> str:
        return f"{self.module}_{kind}" if self.functional else f"{self.module}.{kind}"

    def init_lines(self) -> tuple[str, ...]:
        if self.functional:
            return self._bare_parameters()
        name = f"nn.{'ConvTranspose' if self.transposed else 'Conv'}{self.rank}d"
        arguments = join(
            f"{self.in_channels}, {self.out_channels}, {self.kernel}",
            f"stride={self.stride}" if self.stride != 1 else "",
            f"padding={self.padding}" if self.padding else "",
            f"groups={self.groups}" if self.groups != 1 else "",
            "" if self.bias else "bias=False",
        )
        return (f"self.{self.module} = {name}({arguments})",)

    def _bare_parameters(self) -> tuple[str, ...]:
        outer, inner = self.out_channels, self.in_channels // self.groups
        if self.transposed:
            outer, inner = self.in_channels, self.out_channels // self.groups
        shape = ", ".join(str(size) for size in (outer, inner, *[self.kernel] * self.rank))
        weight = f"self.{self._parameter('weight')} = nn.Parameter(torch.empty({shape}))"
        bias = f"self.{self._parameter('bias')} = nn.Parameter(torch.empty({self.out_channels}))"
        return (weight, bias) if self.bias else (weight,)

    def forward_line(self) -> str:
        if not self.functional:
            return f"{self.out} = self.{self.module}({self.source})"
        arguments = join(
            f"{self.source}, self.{self._parameter('weight')}",
            f"self.{self._parameter('bias')}" if self.bias else "",
            f"stride={self.stride}",
            f"padding={self.padding}",
            f"groups={self.groups}",
        )
        return f"{self.out} = F.conv{'_transpose' if self.transposed else ''}{self.rank}d({arguments})"

    def couple(self, net: Coupling) -> None:
        channels, *positions = net.values[self.source][1:]
        groups = net.note(f"{self.module}#groups", net.new(self.groups))
        inner = net.note(f"{self.module}#in", net.new(self.in_channels // self.groups))
        outer = net.note(f"{self.module}#out", net.new(self.out_channels // self.groups))
        net.product(channels, (groups, inner))
        made = net.flattened((groups, outer))
        net.parameter(self._parameter("weight"), self._weight(net, channels, inner, made, outer))
        if self.bias:
            net.parameter(self._parameter("bias"), (made,))
        net.define(self.out, (net.fixed(1), made, *(self._slide(net, axis) for axis in positions)))

    def _slide(self, net: Coupling, positions: Axis) -> Axis:
        """A kernel of size 1 leaves positions alone; a larger one mixes neighbours, so all of them stay."""
        if self.kernel == 1 and self.stride == 1:
            return positions
        net.fix(positions)
        return net.fixed(self._positions(len(positions)))

    def _weight(self, net: Coupling, channels: Axis, inner: Axis, made: Axis, outer: Axis) -> Axes:
        kernel = (net.fixed(self.kernel),) * self.rank
        return (channels, outer, *kernel) if self.transposed else (made, inner, *kernel)

    def _positions(self, size: int) -> int:
        if self.transposed:
            return (size - 1) * self.stride - 2 * self.padding + self.kernel
        return (size + 2 * self.padding - self.kernel) // self.stride + 1

    def narrowed(self, kept: Kept) -> Step:
        return replace(
            self,
            in_channels=kept.size(self.source, 1),
            out_channels=kept.size(self.out, 1),
            groups=kept.size(f"{self.module}#groups", 0),
        )

    def macs(self, net: Coupling) -> int:
        positions = net.sizes(self.source if self.transposed else self.out)[2:]
        kernel = prod([self.kernel] * self.rank)
        return prod(positions) * self.in_channels * self.out_channels // self.groups * kernel
