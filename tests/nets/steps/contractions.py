"""Products of two activations: matmul, einsum, scaled dot-product attention; and softmax."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from tests.nets.coupling import Axis, Coupling
from tests.nets.steps.pointwise import broadcast
from tests.nets.steps.step import Kept, Step, join


@dataclass(frozen=True)
class MatMul(Step):
    """``left @ right`` over the last two dims, or times the transpose of ``right``; ``einsum`` spells it so."""

    out: str
    left: str
    right: str
    transpose_right: bool = False
    einsum: bool = False

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def contracted(self, net: Coupling) -> Axis:
        return net.values[self.left][-1]

    def forward_line(self) -> str:
        if self.einsum:
            right = "...jk" if self.transpose_right else "...kj"
            return f'{self.out} = torch.einsum("...ik,{right}->...ij", {self.left}, {self.right})'
        transpose = ".transpose(-2, -1)" if self.transpose_right else ""
        return f"{self.out} = {self.left} @ {self.right}{transpose}"

    def couple(self, net: Coupling) -> None:
        *left, rows, inner = net.values[self.left]
        *right, first, second = net.values[self.right]
        other, columns = (second, first) if self.transpose_right else (first, second)
        net.tie(inner, other)
        net.define(self.out, (*broadcast(net, tuple(left), tuple(right)), rows, columns))

    def macs(self, net: Coupling) -> int:
        return prod(net.sizes(self.out)) * net.sizes(self.left)[-1]


@dataclass(frozen=True)
class Softmax(Step):
    """Softmax over a dim; where channels go, the rest is normalised by itself."""

    out: str
    source: str
    dim: int

    def normalised(self, net: Coupling) -> Axis:
        return net.values[self.source][self.dim]

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def forward_line(self) -> str:
        return f"{self.out} = {self.source}.softmax(dim={self.dim})"

    def couple(self, net: Coupling) -> None:
        net.define(self.out, net.values[self.source])


@dataclass(frozen=True)
class ScaledDotProduct(Step):
    """Fused attention of ``(batch, heads, length, width)``; the scale is that of the original width."""

    out: str
    query: str
    key: str
    value: str
    width: int
    explicit_scale: bool = False

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def normalised(self, net: Coupling) -> Axis:
        return net.values[self.key][-2]

    def contracted(self, net: Coupling) -> Axis:
        return (*net.values[self.key][-1], *net.values[self.key][-2])

    def forward_line(self) -> str:
        scale = f"scale={self.width**-0.5!r}" if self.explicit_scale else ""
        arguments = join(self.query, self.key, self.value, scale)
        return f"{self.out} = F.scaled_dot_product_attention({arguments})"

    def couple(self, net: Coupling) -> None:
        (*heads, rows, inner), key, value = (net.values[name] for name in (self.query, self.key, self.value))
        net.tie(inner, key[-1])
        net.tie(key[-2], value[-2])
        shared = broadcast(net, broadcast(net, tuple(heads), key[:-2]), value[:-2])
        net.define(self.out, (*shared, rows, value[-1]))

    def narrowed(self, kept: Kept) -> Step:
        return replace(self, explicit_scale=True)

    def macs(self, net: Coupling) -> int:
        rows, length = net.sizes(self.query)[-2], net.sizes(self.key)[-2]
        widths = net.sizes(self.query)[-1] + net.sizes(self.value)[-1]
        return prod(net.sizes(self.out)[:-2]) * rows * length * widths
