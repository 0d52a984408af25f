"""Steps that make several copies of an index: expand, repeat, repeat_interleave."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.nets.coupling import Coupling
from tests.nets.steps.step import Kept, Step


@dataclass(frozen=True)
class Expand(Step):
    """Expand a dim of size 1 to ``size``; each copy can go by itself."""

    out: str
    source: str
    dim: int
    size: int
    rank: int

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def forward_line(self) -> str:
        sizes = [str(self.size) if dim == self.dim else "-1" for dim in range(self.rank)]
        return f"{self.out} = {self.source}.expand({', '.join(sizes)})"

    def couple(self, net: Coupling) -> None:
        axes = net.values[self.source]
        net.define(self.out, (*axes[: self.dim], net.new(self.size), *axes[self.dim + 1 :]))

    def narrowed(self, kept: Kept) -> Step:
        return replace(self, size=kept.size(self.out, self.dim))

    @property
    def zero_preserving(self) -> bool:
        """A copy that goes was no zero: no parameter made it."""
        return False


@dataclass(frozen=True)
class Repeat(Step):
    """``repeat`` (the whole dim again and again) or ``repeat_interleave`` (each index ``count`` times in a row)."""

    out: str
    source: str
    dim: int
    count: int
    rank: int
    interleave: bool = False

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def forward_line(self) -> str:
        if self.interleave:
            return f"{self.out} = {self.source}.repeat_interleave({self.count}, dim={self.dim})"
        counts = [str(self.count) if dim == self.dim else "1" for dim in range(self.rank)]
        return f"{self.out} = {self.source}.repeat({', '.join(counts)})"

    def couple(self, net: Coupling) -> None:
        axes = net.values[self.source]
        copies = net.note(f"{self.out}#copies", net.new(self.count))
        factors = (axes[self.dim], copies) if self.interleave else (copies, axes[self.dim])
        net.define(self.out, (*axes[: self.dim], net.flattened(factors), *axes[self.dim + 1 :]))

    def narrowed(self, kept: Kept) -> Step:
        return replace(self, count=kept.size(f"{self.out}#copies", 0))

    @property
    def zero_preserving(self) -> bool:
        """A copy that goes was no zero: no parameter made it."""
        return False


@dataclass(frozen=True)
class ExpandBatch(Step):
    """``x.expand(other.shape[0], -1, ...)``: a class token for every example of the batch."""

    out: str
    source: str
    like: str
    rank: int

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def forward_line(self) -> str:
        return f"{self.out} = {self.source}.expand({self.like}.shape[0]{', -1' * (self.rank - 1)})"

    def couple(self, net: Coupling) -> None:
        net.define(self.out, net.values[self.source])
