"""Linear layers, embeddings and tied weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from tests.nets.coupling import Coupling
from tests.nets.steps.step import Kept, Step, join


@dataclass(frozen=True)
class Linear(Step):
    """``nn.Linear`` over the last dim, or ``F.linear`` on bare parameters."""

    out: str
    source: str
    module: str
    in_features: int
    out_features: int
    bias: bool = True
    functional: bool = False

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def _parameter(self, kind: str) -> str:
        return f"{self.module}_{kind}" if self.functional else f"{self.module}.{kind}"

    def init_lines(self) -> tuple[str, ...]:
        if not self.functional:
            arguments = join(f"{self.in_features}, {self.out_features}", "" if self.bias else "bias=False")
            return (f"self.{self.module} = nn.Linear({arguments})",)
        shape = f"{self.out_features}, {self.in_features}"
        weight = f"self.{self._parameter('weight')} = nn.Parameter(torch.empty({shape}))"
        bias = f"self.{self._parameter('bias')} = nn.Parameter(torch.empty({self.out_features}))"
        return (weight, bias) if self.bias else (weight,)

    def forward_line(self) -> str:
        if not self.functional:
            return f"{self.out} = self.{self.module}({self.source})"
        weight, bias = (f"self.{self._parameter(kind)}" for kind in ("weight", "bias"))
        return f"{self.out} = F.linear({join(self.source, weight, bias if self.bias else '')})"

    def couple(self, net: Coupling) -> None:
        *others, features = net.values[self.source]
        made = net.new(self.out_features)
        net.parameter(self._parameter("weight"), (made, features))
        if self.bias:
            net.parameter(self._parameter("bias"), (made,))
        net.define(self.out, (*others, made))

    def narrowed(self, kept: Kept) -> Step:
        weight = self._parameter("weight")
        return replace(self, in_features=kept.size(weight, 1), out_features=kept.size(weight, 0))

    def macs(self, net: Coupling) -> int:
        return prod(net.sizes(self.out)) * self.in_features


@dataclass(frozen=True)
class Embedding(Step):
    """``nn.Embedding`` of integer tokens: ``(batch, length)`` to ``(batch, length, width)``."""

    out: str
    source: str
    module: str
    vocabulary: int
    width: int

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def init_lines(self) -> tuple[str, ...]:
        return (f"self.{self.module} = nn.Embedding({self.vocabulary}, {self.width})",)

    def forward_line(self) -> str:
        return f"{self.out} = self.{self.module}({self.source})"

    def couple(self, net: Coupling) -> None:
        width = net.new(self.width)
        net.parameter(f"{self.module}.weight", (net.fixed(self.vocabulary), width))
        net.define(self.out, (*net.values[self.source], width))

    def narrowed(self, kept: Kept) -> Step:
        return replace(self, width=kept.size(f"{self.module}.weight", 1))


@dataclass(frozen=True)
class Tie(Step):
    """``self.second.weight = self.first.weight``: one parameter under two names."""

    first: str
    second: str

    def outputs(self) -> tuple[str, ...]:
        return ()

    def init_lines(self) -> tuple[str, ...]:
        return (f"self.{self.second}.weight = self.{self.first}.weight",)

    def forward_line(self) -> str:
        return ""

    def couple(self, net: Coupling) -> None:
        net.parameter(f"{self.second}.weight", net.parameters[f"{self.first}.weight"])
