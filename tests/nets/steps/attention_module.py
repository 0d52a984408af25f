"""``nn.MultiheadAttention`` as one step."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.nets.coupling import Axis, Coupling
from tests.nets.steps.step import Kept, Step, join


@dataclass(frozen=True)
class MultiheadAttention(Step):
    """Self-attention of tokens by ``nn.MultiheadAttention``.

    ``narrow`` holds the sizes of a narrower one, which torch's module cannot express: see ``NarrowAttention``.
    """

    out: str
    source: str
    module: str
    channels: int
    heads: int
    bias: bool = True
    narrow: tuple[int, int, int, int, int] | None = None

    def normalised(self, net: Coupling) -> Axis:
        return net.values[self.source][1]

    def contracted(self, net: Coupling) -> Axis:
        return (*net.values[self.source][1], *net.values[f"{self.module}#width"][0])

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    @property
    def width(self) -> int:
        """Channels of a head in the original."""
        return self.channels // self.heads

    def init_lines(self) -> tuple[str, ...]:
        if self.narrow is None:
            arguments = join(f"{self.channels}, {self.heads}", "" if self.bias else "bias=False", "batch_first=True")
            return (f"self.{self.module} = nn.MultiheadAttention({arguments})",)
        return (f"self.{self.module} = NarrowAttention({self.narrow}, {self.width**-0.5!r}, {self.bias})",)

    def forward_line(self) -> str:
        if self.narrow is not None:
            return f"{self.out} = self.{self.module}({self.source})"
        return f"{self.out} = self.{self.module}({', '.join([self.source] * 3)}, need_weights=False)[0]"

    def couple(self, net: Coupling) -> None:
        batch, length, channels = net.values[self.source]
        _, heads_size, width_size, value_size, out_size = self._sizes()
        heads = net.note(f"{self.module}#heads", net.new(heads_size))
        width = net.note(f"{self.module}#width", net.new(width_size))
        value_width = net.note(f"{self.module}#value", net.new(value_size))
        value = net.flattened((heads, value_width))
        rows = (*net.flattened((heads, width)), *net.flattened((heads, width)), *value)
        made = net.new(out_size)
        net.parameter(f"{self.module}.in_proj_weight", (rows, channels))
        net.parameter(f"{self.module}.out_proj.weight", (made, value))
        if self.bias:
            net.parameter(f"{self.module}.in_proj_bias", (rows,))
            net.parameter(f"{self.module}.out_proj.bias", (made,))
        net.define(self.out, (batch, length, made))

    def _sizes(self) -> tuple[int, int, int, int, int]:
        return self.narrow or (self.channels, self.heads, self.width, self.width, self.channels)

    def narrowed(self, kept: Kept) -> Step:
        heads, width, value = (kept.size(f"{self.module}#{part}", 0) for part in ("heads", "width", "value"))
        return replace(self, narrow=(kept.size(self.source, 2), heads, width, value, kept.size(self.out, 2)))

    def macs(self, net: Coupling) -> int:
        length = net.sizes(self.source)[1]
        channels, heads, width, value, out = self._sizes()
        projections = length * heads * (channels * (2 * width + value) + value * out)
        return projections + heads * length * length * (width + value)
