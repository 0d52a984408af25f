"""Steps that treat every element by itself, and arithmetic of two values with broadcasting."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from tests.nets.coupling import Axes, Axis, Coupling
from tests.nets.steps.step import Kept, Step


@dataclass(frozen=True)
class Function:
    """How a function of one element is written, and whether it keeps zero at zero."""

    module: str
    expression: str
    zero_preserving: bool = True


FUNCTIONS: dict[str, Function] = {
    "relu": Function("nn.ReLU()", "F.relu({x})"),
    "relu_in_place": Function("nn.ReLU(inplace=True)", "F.relu({x} + 0, inplace=True)"),
    "relu6": Function("nn.ReLU6()", "F.relu6({x})"),
    "gelu": Function("nn.GELU()", "F.gelu({x})"),
    "silu": Function("nn.SiLU()", "{x} * torch.sigmoid({x})"),
    "tanh": Function("nn.Tanh()", "{x}.tanh()"),
    "hardswish": Function("nn.Hardswish()", "F.hardswish({x})"),
    "leaky_relu": Function("nn.LeakyReLU(0.1)", "F.leaky_relu({x}, 0.1)"),
    "sigmoid": Function("nn.Sigmoid()", "torch.sigmoid({x})", zero_preserving=False),
    "hardsigmoid": Function("nn.Hardsigmoid()", "F.hardsigmoid({x})", zero_preserving=False),
    "softplus": Function("nn.Softplus()", "F.softplus({x})", zero_preserving=False),
    "identity": Function("nn.Identity()", "{x}.contiguous()"),
    "dropout": Function("nn.Dropout(0.1)", "F.dropout({x}, 0.1, self.training)"),
    "clamp": Function("nn.Hardtanh()", "{x}.clamp(-1, 1)"),
    "negation": Function("nn.Softsign()", "-{x}"),
    "square": Function("nn.Tanhshrink()", "{x}.tanh() ** 2"),
}


@dataclass(frozen=True)
class Pointwise(Step):
    """One function of each element, as a module where ``module`` names one, else as a function or method."""

    out: str
    source: str
    function: str
    module: str = ""

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    @property
    def zero_preserving(self) -> bool:
        return FUNCTIONS[self.function].zero_preserving

    def init_lines(self) -> tuple[str, ...]:
        return (f"self.{self.module} = {FUNCTIONS[self.function].module}",) if self.module else ()

    def forward_line(self) -> str:
        if self.module:
            return f"{self.out} = self.{self.module}({self.source})"
        return f"{self.out} = {FUNCTIONS[self.function].expression.format(x=self.source)}"

    def couple(self, net: Coupling) -> None:
        net.define(self.out, net.values[self.source])


@dataclass(frozen=True)
class PReLU(Step):
    """``nn.PReLU`` with one slope, or one per channel."""

    out: str
    source: str
    module: str
    slopes: int

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def init_lines(self) -> tuple[str, ...]:
        return (f"self.{self.module} = nn.PReLU({self.slopes})",)

    def forward_line(self) -> str:
        return f"{self.out} = self.{self.module}({self.source})"

    def couple(self, net: Coupling) -> None:
        axes = net.values[self.source]
        net.parameter(f"{self.module}.weight", (axes[1] if self.slopes > 1 else net.fixed(1),))
        net.define(self.out, axes)

    def narrowed(self, kept: Kept) -> Step:
        return replace(self, slopes=kept.size(f"{self.module}.weight", 0))


def broadcast(net: Coupling, left: Axes, right: Axes) -> Axes:
    """Tie two shapes as torch broadcasts them: aligned at the right; a dim of size 1 couples nothing."""
    rank = max(len(left), len(right))
    padded = [(net.fixed(1),) * (rank - len(axes)) + axes for axes in (left, right)]
    return tuple(_broadcast_axis(net, a, b) for a, b in zip(*padded, strict=True))


def _broadcast_axis(net: Coupling, left: Axis, right: Axis) -> Axis:
    if len(left) == 1 or len(right) == 1:
        return max(left, right, key=len)
    net.tie(left, right)
    return left


@dataclass(frozen=True)
class Binary(Step):
    """``left + right``, ``left - right`` or ``left * right``, broadcasting; ``in_place`` writes into ``left``."""

    out: str
    left: str
    right: str
    operator: str = "+"
    in_place: bool = False

    METHODS: ClassVar[dict[str, str]] = {"+": "add_", "-": "sub_", "*": "mul_"}

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def forward_line(self) -> str:
        if self.in_place:
            return f"{self.out} = ({self.left} + 0).{self.METHODS[self.operator]}({self.right})"
        return f"{self.out} = {self.left} {self.operator} {self.right}"

    def couple(self, net: Coupling) -> None:
        net.define(self.out, broadcast(net, net.values[self.left], net.values[self.right]))


@dataclass(frozen=True)
class Scale(Step):
    """Times a constant number, or divided by a size: the number the original had is what counts, also when narrowed."""

    out: str
    source: str
    number: float = 0.0
    divide_by_dim: int | None = None

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def forward_line(self) -> str:
        if self.divide_by_dim is None:
            return f"{self.out} = {self.source} * {self.number!r}"
        return f"{self.out} = {self.source} * {self.source}.shape[{self.divide_by_dim}] ** -0.5"

    def couple(self, net: Coupling) -> None:
        net.define(self.out, net.values[self.source])

    def narrowed(self, kept: Kept) -> Step:
        if self.divide_by_dim is None:
            return self
        return replace(self, number=self.number, divide_by_dim=None)
