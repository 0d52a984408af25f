"""Values that come from no input: bare parameters, buffers and constants."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.nets.coupling import Coupling
from tests.nets.steps.step import Kept, Step


@dataclass(frozen=True)
class BareTensor(Step):
    """A parameter or float buffer used as a value: layer scale, channel bias, position embedding, class token."""

    out: str
    name: str
    shape: tuple[int, ...]
    buffer: bool = False

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def init_lines(self) -> tuple[str, ...]:
        empty = f"torch.empty({self.shape})"
        if self.buffer:
            return (f'self.register_buffer("{self.name}", {empty})',)
        return (f"self.{self.name} = nn.Parameter({empty})",)

    def forward_line(self) -> str:
        return f"{self.out} = self.{self.name}"

    def couple(self, net: Coupling) -> None:
        net.define(self.out, net.parameter(self.name, tuple(net.new(size) for size in self.shape)))

    def narrowed(self, kept: Kept) -> Step:
        return replace(self, shape=tuple(kept.size(self.name, dim) for dim in range(len(self.shape))))


@dataclass(frozen=True)
class Ramp(Step):
    """A constant that is made while the network runs: ``torch.linspace(-1, 1, size)`` of the original size."""

    out: str
    size: int
    trailing: int
    like: str
    positions: tuple[int, ...] | None = None

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def forward_line(self) -> str:
        chosen = "" if self.positions is None else f"[{list(self.positions)}]"
        shape = ", ".join(["-1", *["1"] * self.trailing])
        made = f"torch.linspace(-1, 1, {self.size}, dtype={self.like}.dtype, device={self.like}.device)"
        return f"{self.out} = {made}{chosen}.reshape({shape})"

    def couple(self, net: Coupling) -> None:
        size = self.size if self.positions is None else len(self.positions)
        net.define(self.out, (net.new(size), *(net.fixed(1),) * self.trailing))

    def narrowed(self, kept: Kept) -> Step:
        return replace(self, positions=kept.positions(self.out, 0))
