"""Steps that regroup and reorder dims: reshape, permute, squeeze, unsqueeze."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.nets.coupling import Axes, Axis, Coupling
from tests.nets.steps.step import Kept, Step


@dataclass(frozen=True)
class Segment:
    """``inputs`` dims of the source that become dims of ``sizes``; both flatten row-major to the same elements."""

    inputs: int
    sizes: tuple[int, ...]


PURE_BATCH = Segment(1, (1,))


@dataclass(frozen=True)
class Reshape(Step):
    """A reshape, segment by segment. The batch is the first factor of dim 0 on both sides and counts as 1 in ``sizes``.

    ``style`` says how it is spelled: ``literal`` sizes, ``minus_one`` for the last size or ``minus_one_first`` for the
    first after the batch, ``flatten``, ``unflatten``, or ``shape``, where sizes are computed from those of the source.
    """

    out: str
    source: str
    segments: tuple[Segment, ...]
    style: str = "literal"

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def forward_line(self) -> str:
        if self.style in ("flatten", "unflatten"):
            return f"{self.out} = {self._one_segment()}"
        sizes = self._computed_sizes() if self.style == "shape" else self._literal_sizes()
        return f"{self.out} = {self.source}.reshape({', '.join(sizes)})"

    def _literal_sizes(self) -> list[str]:
        sizes = [str(size) for segment in self.segments for size in segment.sizes]
        sizes[0] = f"{self.source}.shape[0]" if self.segments[0] == PURE_BATCH else "-1"
        if self.style == "minus_one":
            sizes[-1] = "-1"
        if self.style == "minus_one_first":
            sizes[1] = "-1"
        return sizes

    def _computed_sizes(self) -> list[str]:
        sizes, at = [], 0
        for segment in self.segments:
            whole = " * ".join(f"{self.source}.shape[{dim}]" for dim in range(at, at + segment.inputs))
            leading = segment.sizes[:-1]
            divisor = " // ".join(str(size) for size in leading)
            sizes += [*(str(size) for size in leading), f"{whole} // {divisor}" if leading else whole]
            at += segment.inputs
        return sizes

    def _one_segment(self) -> str:
        at = 0
        for segment in self.segments:
            if segment.inputs > 1 and self.style == "flatten":
                return f"{self.source}.flatten({at}, {at + segment.inputs - 1})"
            if len(segment.sizes) > 1 and self.style == "unflatten":
                sizes = ("-1" if at == 0 else str(segment.sizes[0]), *(str(size) for size in segment.sizes[1:]))
                return f"{self.source}.unflatten({at}, ({', '.join(sizes)}))"
            at += segment.inputs
        raise ValueError(f"no segment of {self.segments} can be spelled as {self.style}")

    def couple(self, net: Coupling) -> None:
        axes, made, at = net.values[self.source], list[Axis](), 0
        for segment in self.segments:
            made.extend(_regroup(net, axes[at : at + segment.inputs], segment.sizes))
            at += segment.inputs
        net.define(self.out, tuple(made))

    def narrowed(self, kept: Kept) -> Step:
        segments, at = list[Segment](), 0
        for segment in self.segments:
            dims = range(at, at + len(segment.sizes))
            segments.append(Segment(segment.inputs, tuple(kept.size(self.out, dim) for dim in dims)))
            at += len(segment.sizes)
        return replace(self, segments=tuple(segments), style="literal" if self.style == "shape" else self.style)


def _regroup(net: Coupling, axes: Axes, sizes: tuple[int, ...]) -> Axes:
    flat = axes[0] if len(axes) == 1 else net.flattened(axes)
    if len(sizes) == 1:
        return (flat,)
    factors = tuple(net.new(size) for size in sizes)
    net.product(flat, factors)
    return factors


@dataclass(frozen=True)
class Permute(Step):
    """Reorder dims; ``transpose`` spells an exchange of two of them."""

    out: str
    source: str
    dims: tuple[int, ...]
    transpose: bool = False

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def forward_line(self) -> str:
        moved = [dim for dim, origin in enumerate(self.dims) if dim != origin]
        if self.transpose and len(moved) == 2:
            return f"{self.out} = {self.source}.transpose({moved[0]}, {moved[1]})"
        return f"{self.out} = {self.source}.permute({', '.join(str(dim) for dim in self.dims)})"

    def couple(self, net: Coupling) -> None:
        axes = net.values[self.source]
        net.define(self.out, tuple(axes[dim] for dim in self.dims))


@dataclass(frozen=True)
class Unsqueeze(Step):
    """Insert a dim of size 1."""

    out: str
    source: str
    dim: int

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def forward_line(self) -> str:
        return f"{self.out} = {self.source}.unsqueeze({self.dim})"

    def couple(self, net: Coupling) -> None:
        axes = net.values[self.source]
        net.define(self.out, (*axes[: self.dim], net.fixed(1), *axes[self.dim :]))


@dataclass(frozen=True)
class Squeeze(Step):
    """Drop a dim of size 1."""

    out: str
    source: str
    dim: int

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def forward_line(self) -> str:
        return f"{self.out} = {self.source}.squeeze({self.dim})"

    def couple(self, net: Coupling) -> None:
        axes = net.values[self.source]
        net.define(self.out, (*axes[: self.dim], *axes[self.dim + 1 :]))
