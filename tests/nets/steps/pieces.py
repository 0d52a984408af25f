"""Steps that join and cut dims: concat, stack, split, pad, select, and every reordering of indices."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.nets.coupling import Axes, Axis, Coupling
from tests.nets.steps.step import Kept, Step


def with_axis(axes: Axes, dim: int, axis: Axis) -> Axes:
    """Return ``axes`` with another axis at ``dim``."""
    return (*axes[:dim], axis, *axes[dim + 1 :])


def tie_others(net: Coupling, shapes: list[Axes], dim: int) -> None:
    """Tie every dim but one of several shapes."""
    for shape in shapes[1:]:
        for at, (first, axis) in enumerate(zip(shapes[0], shape, strict=True)):
            if at != dim:
                net.tie(first, axis)


@dataclass(frozen=True)
class Concat(Step):
    """``torch.cat`` along a dim."""

    out: str
    sources: tuple[str, ...]
    dim: int

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def forward_line(self) -> str:
        return f"{self.out} = torch.cat([{', '.join(self.sources)}], dim={self.dim})"

    def couple(self, net: Coupling) -> None:
        shapes = [net.values[source] for source in self.sources]
        tie_others(net, shapes, self.dim)
        joined = tuple(cell for shape in shapes for cell in shape[self.dim])
        net.define(self.out, with_axis(shapes[0], self.dim, joined))


@dataclass(frozen=True)
class Stack(Step):
    """``torch.stack`` along a new dim, whose size is the number of tensors and stays."""

    out: str
    sources: tuple[str, ...]
    dim: int

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def forward_line(self) -> str:
        return f"{self.out} = torch.stack([{', '.join(self.sources)}], dim={self.dim})"

    def couple(self, net: Coupling) -> None:
        shapes = [net.values[source] for source in self.sources]
        tie_others(net, shapes, dim=-1)
        axes = shapes[0]
        net.define(self.out, (*axes[: self.dim], net.fixed(len(shapes)), *axes[self.dim :]))


@dataclass(frozen=True)
class Split(Step):
    """Cut a dim into consecutive pieces, spelled as ``split``, ``slices`` or ``chunk`` (for the sizes torch makes)."""

    outs: tuple[str, ...]
    source: str
    dim: int
    sizes: tuple[int, ...]
    style: str = "split"

    def outputs(self) -> tuple[str, ...]:
        return self.outs

    def forward_line(self) -> str:
        names = ", ".join(self.outs)
        if self.style == "chunk":
            return f"{names} = {self.source}.chunk({len(self.sizes)}, dim={self.dim})"
        if self.style == "slices":
            return f"{names} = {', '.join(self._slices())}"
        return f"{names} = torch.split({self.source}, {list(self.sizes)}, dim={self.dim})"

    def _slices(self) -> list[str]:
        before = ":, " * self.dim
        bounds = [(sum(self.sizes[:at]), sum(self.sizes[: at + 1])) for at in range(len(self.sizes))]
        return [f"{self.source}[{before}{start}:{stop}]" for start, stop in bounds]

    def couple(self, net: Coupling) -> None:
        axes, start = net.values[self.source], 0
        for out, size in zip(self.outs, self.sizes, strict=True):
            net.define(out, with_axis(axes, self.dim, axes[self.dim][start : start + size]))
            start += size

    def narrowed(self, kept: Kept) -> Step:
        sizes = tuple(kept.size(out, self.dim) for out in self.outs)
        return replace(self, sizes=sizes, style="split")


@dataclass(frozen=True)
class Reindex(Step):
    """Index ``i`` of the output is index ``positions[i]`` of the source: a slice, flip, roll or index list.

    ``spelling`` is the source text with ``{x}`` for the value; empty spells the positions out.
    """

    out: str
    source: str
    dim: int
    positions: tuple[int, ...]
    spelling: str = ""

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def forward_line(self) -> str:
        spelling = self.spelling or f"{{x}}[{':, ' * self.dim}{list(self.positions)}]"
        return f"{self.out} = {spelling.format(x=self.source)}"

    def couple(self, net: Coupling) -> None:
        axes = net.values[self.source]
        for number, run in enumerate(self._unused(len(axes[self.dim]))):
            net.piece(f"{self.out}#unused{number}", tuple(axes[self.dim][at] for at in run))
        net.define(self.out, with_axis(axes, self.dim, tuple(axes[self.dim][at] for at in self.positions)))

    def _unused(self, size: int) -> list[list[int]]:
        """What is left out: before and after a plain slice are two pieces, all that others leave out is one."""
        unused = [at for at in range(size) if at not in self.positions]
        low, high = min(self.positions), max(self.positions)
        plain = self.positions == tuple(range(low, high + 1))
        runs = [[at for at in unused if at < low], [at for at in unused if at > high]] if plain else [unused]
        return [run for run in runs if run]

    def narrowed(self, kept: Kept) -> Step:
        new = {old: at for at, old in enumerate(kept.positions(self.source, self.dim))}
        positions = tuple(new[self.positions[at]] for at in kept.positions(self.out, self.dim))
        return replace(self, positions=positions, spelling="")


@dataclass(frozen=True)
class Select(Step):
    """``x.select(dim, index)`` or ``x[:, index]``: drops a dim; the chosen index has to stay."""

    out: str
    source: str
    dim: int
    index: int
    subscript: bool = True

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def forward_line(self) -> str:
        if self.subscript:
            return f"{self.out} = {self.source}[{':, ' * self.dim}{self.index}]"
        return f"{self.out} = {self.source}.select({self.dim}, {self.index})"

    def couple(self, net: Coupling) -> None:
        axes = net.values[self.source]
        net.fix((axes[self.dim][self.index],))
        net.define(self.out, (*axes[: self.dim], *axes[self.dim + 1 :]))

    def narrowed(self, kept: Kept) -> Step:
        return replace(self, index=kept.positions(self.source, self.dim).index(self.index))


@dataclass(frozen=True)
class Unbind(Step):
    """``x.unbind(dim)``: one value for each index of a dim, so all of them stay."""

    outs: tuple[str, ...]
    source: str
    dim: int

    def outputs(self) -> tuple[str, ...]:
        return self.outs

    def forward_line(self) -> str:
        return f"{', '.join(self.outs)} = {self.source}.unbind({self.dim})"

    def couple(self, net: Coupling) -> None:
        axes = net.values[self.source]
        net.fix(axes[self.dim])
        for out in self.outs:
            net.define(out, (*axes[: self.dim], *axes[self.dim + 1 :]))


@dataclass(frozen=True)
class Pad(Step):
    """Zeros before and after a dim; the zeros are channels too and can go with what they are tied to."""

    out: str
    source: str
    dim: int
    before: int
    after: int
    rank: int

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def forward_line(self) -> str:
        pads = [0, 0] * (self.rank - 1 - self.dim) + [self.before, self.after]
        return f"{self.out} = F.pad({self.source}, {pads})"

    def couple(self, net: Coupling) -> None:
        axes = net.values[self.source]
        before, after = (net.cells(size) for size in (self.before, self.after))
        for name, zeros in (("before", before), ("after", after)):
            if zeros:
                net.piece(f"{self.out}#{name}", zeros)
        net.define(self.out, with_axis(axes, self.dim, (*before, *axes[self.dim], *after)))

    def narrowed(self, kept: Kept) -> Step:
        before = kept.size(f"{self.out}#before", 0) if self.before else 0
        after = kept.size(f"{self.out}#after", 0) if self.after else 0
        return replace(self, before=before, after=after)
