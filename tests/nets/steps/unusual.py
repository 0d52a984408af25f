"""Steps that real networks take now and then: recurrent layers with or without a state, ``squeeze()``, merged heads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

from tests.nets.coupling import Coupling
from tests.nets.steps.step import Kept, Step


@dataclass(frozen=True)
class Recurrent(Step):
    """``nn.RNN``, ``nn.GRU`` or ``nn.LSTM`` over tokens; ``state`` names a first state of shape ``(batch, hidden)``."""

    out: str
    source: str
    module: str
    kind: str
    inner: int
    hidden: int
    state: str = ""

    GATES: ClassVar[dict[str, int]] = {"RNN": 1, "GRU": 3, "LSTM": 4}

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def init_lines(self) -> tuple[str, ...]:
        return (f"self.{self.module} = nn.{self.kind}({self.inner}, {self.hidden}, batch_first=True)",)

    def forward_line(self) -> str:
        state = f", {self.state}.unsqueeze(0)" if self.state else ""
        if self.state and self.kind == "LSTM":
            state = f", ({self.state}.unsqueeze(0), {self.state}.unsqueeze(0))"
        return f"{self.out} = self.{self.module}({self.source}{state})[0]"

    def couple(self, net: Coupling) -> None:
        batch, length, inner = net.values[self.source]
        hidden = net.values[self.state][1] if self.state else net.new(self.hidden)
        rows = net.flattened((net.fixed(self.GATES[self.kind]), hidden))
        net.parameter(f"{self.module}.weight_ih_l0", (rows, inner))
        net.parameter(f"{self.module}.weight_hh_l0", (rows, hidden))
        for kind in ("bias_ih_l0", "bias_hh_l0"):
            net.parameter(f"{self.module}.{kind}", (rows,))
        net.define(self.out, (batch, length, hidden))

    def narrowed(self, kept: Kept) -> Step:
        return replace(self, inner=kept.size(self.source, 2), hidden=kept.size(self.out, 2))

    def macs(self, net: Coupling) -> int:
        return net.sizes(self.out)[1] * self.GATES[self.kind] * self.hidden * (self.inner + self.hidden)


@dataclass(frozen=True)
class Squeezed(Step):
    """Pooled over positions, then ``squeeze()`` of every dim of one: a batch or a channel of one would go, too."""

    out: str
    source: str

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def forward_line(self) -> str:
        return f"{self.out} = {self.source}.mean((2, 3), keepdim=True).squeeze()"

    def couple(self, net: Coupling) -> None:
        net.define(self.out, net.values[self.source][:2])


@dataclass(frozen=True)
class HeadsInBatch(Step):
    """Attention of tokens to themselves, heads merged into the batch: ``(batch * heads, length, width)``."""

    out: str
    source: str
    note: str
    heads: int
    width: int

    @property
    def zero_preserving(self) -> bool:
        return False

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def forward_line(self) -> str:
        x, out, heads, width = self.source, self.out, self.heads, self.width
        return "\n".join(
            (
                f"{out} = {x}.reshape({x}.shape[0], -1, {heads}, {width}).transpose(1, 2)",
                f"{out} = {out}.reshape({x}.shape[0] * {heads}, -1, {width})",
                f"{out} = torch.bmm(torch.bmm({out}, {out}.transpose(1, 2)).softmax(2), {out})",
                f"{out} = {out}.reshape({x}.shape[0], {heads}, -1, {width}).transpose(1, 2).flatten(2)",
            )
        )

    def couple(self, net: Coupling) -> None:
        axes = net.values[self.source]
        heads = net.note(f"{self.note}#heads", net.new(self.heads))
        width = net.note(f"{self.note}#width", net.new(self.width))
        net.product(axes[2], (heads, width))
        net.define(self.out, axes)

    def narrowed(self, kept: Kept) -> Step:
        return replace(self, heads=kept.size(f"{self.note}#heads", 0), width=kept.size(f"{self.note}#width", 0))

    def macs(self, net: Coupling) -> int:
        return 2 * net.sizes(self.out)[1] * prod(net.sizes(self.out))
