"""Channel graphs written by hand, so that planning is tested without capture and analysis."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fxprune.analysis.groups import Group, Member, PinnedWidth
from fxprune.axes.elements import Mask, kept_mask
from fxprune.axes.expressions import Axis, Channels, Fixed, Origin, Term, concat, gather, product, variables
from fxprune.cost.budgets import CostModel
from fxprune.cost.latency import LatencyModel, ShapedOp, measured_surface
from fxprune.cost.memory import LiveTerm, MemoryModel

IN = Fixed(3, "it is a dim of the network's input")
OUT = Fixed(10, "it is a dim of the network's output")


def channels(size: int, name: str = "t") -> Channels:
    """A fresh variable."""
    return Channels(size, Origin(name, 0))


@dataclass(frozen=True)
class HandGraph:
    """What planning and criteria read of a channel graph."""

    groups: tuple[Group, ...]
    pinned: tuple[PinnedWidth, ...]
    macs: tuple[Term, ...]
    params: tuple[Term, ...]
    tensors: Mapping[str, tuple[Axis, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    activations: tuple[Axis, ...]
    fewest: tuple[tuple[Axis, int], ...] = ()
    calls: Mapping[object, object] = field(default_factory=dict)  # there are no ops to look at

    @property
    def parameter_names(self) -> frozenset[str]:
        """Of every parameter."""
        return frozenset(term.owner for term in self.params)

    @property
    def first_names(self) -> dict[str, str]:
        """No tensor has another name."""
        return {name: name for name in self.shapes}

    @functools.cached_property
    def cost_models(self) -> dict[str, CostModel]:
        """Costs that are not read off the terms, and those that were asked for."""
        return {"memory": self.memory(), "latency": self.latency()}

    def memory(self) -> MemoryModel:
        """Four bytes an element; each op's result has eight positions and is read by the next op alone."""
        outputs = [(term.owner, term.axes[0]) for term in self.macs if term.axes]
        live = [LiveTerm(Term(name, 32.0, (axis,)), step, step + 1) for step, (name, axis) in enumerate(outputs)]
        return MemoryModel((Term(t.owner, 4 * t.coefficient, t.axes) for t in self.params), live)

    def latency(self) -> LatencyModel:
        """A second for each multiply-accumulate, looked up on a grid of the op's widths."""
        shaped = []
        for term in self.macs:
            axes = tuple(axis for axis in term.axes if not isinstance(axis, Fixed))
            fixed = term.coefficient * math.prod(axis.size for axis in term.axes if isinstance(axis, Fixed))
            surface = measured_surface(tuple(a.size for a in axes), lambda widths, c=fixed: c * math.prod(widths))
            shaped.append(ShapedOp(term.owner, axes, surface))
        return LatencyModel((), shaped)

    def group(self, name: str) -> Group:
        """The group of that name."""
        return next(g for g in self.groups if g.name == name)


class Builder:
    """Collects layers, then :meth:`build` finds members, costs and pinned widths."""

    def __init__(self) -> None:
        self.tensors: dict[str, tuple[Axis, ...]] = {}
        self.roles: dict[tuple[str, int], str] = {}
        self.macs: list[Term] = []
        self.buffers: set[str] = set()

    def conv(self, name: str, out: Axis, into: Axis, positions: int = 16, kernel: int = 3) -> None:
        """A convolution without bias: ``positions`` output positions, ``kernel`` x ``kernel`` taps."""
        taps = Fixed(kernel, "it is a kernel size")
        self.tensors[f"{name}.weight"] = (out, into, taps, taps)
        self.roles |= {(f"{name}.weight", 0): "out", (f"{name}.weight", 1): "in"}
        self.macs.append(Term(name, float(positions * kernel * kernel), (out, into)))

    def linear(self, name: str, out: Axis, into: Axis) -> None:
        """A linear layer with bias."""
        self.tensors |= {f"{name}.weight": (out, into), f"{name}.bias": (out,)}
        self.roles |= {(f"{name}.weight", 0): "out", (f"{name}.weight", 1): "in", (f"{name}.bias", 0): "out"}
        self.macs.append(Term(name, 1.0, (out, into)))

    def norm(self, name: str, axis: Axis) -> None:
        """A batch norm."""
        for part in ("weight", "bias", "running_mean", "running_var"):
            self.tensors[f"{name}.{part}"] = (axis,)
            self.roles[f"{name}.{part}", 0] = "scale"
        self.buffers |= {f"{name}.running_mean", f"{name}.running_var"}

    def parameter(self, name: str, *axes: Axis) -> None:
        """A bare parameter."""
        self.tensors[name] = axes
        self.roles |= {(name, dim): "other" for dim in range(len(axes))}

    def build(self, named: Mapping[str, Channels], joined: tuple[str, ...] = ()) -> HandGraph:
        """The graph with one group for each named variable; ``joined`` ones cross an addition."""
        groups = tuple(self._group(name, variable, name in joined) for name, variable in named.items())
        pinned = tuple(
            PinnedWidth(tensor, dim, axis.size, axis.why, "op")
            for (tensor, dim), role in self.roles.items()
            if isinstance(axis := self.tensors[tensor][dim], Fixed) and role in ("out", "in")
        )
        params = tuple(Term(n, 1.0, axes) for n, axes in self.tensors.items() if n not in self.buffers)
        shapes = {n: tuple(a.size for a in axes) for n, axes in self.tensors.items()}
        return HandGraph(groups, pinned, tuple(self.macs), params, self.tensors, shapes, ())

    def _group(self, name: str, variable: Channels, joined: bool) -> Group:
        members = tuple(
            Member(tensor, dim, self.roles.get((tensor, dim), "other"), axis)
            for tensor, axes in self.tensors.items()
            for dim, axis in enumerate(axes)
            if any(v is variable for v in variables(axis))
        )
        return Group(name, variable, variable.size, members, crosses_add=joined)


def chain(*widths: int) -> HandGraph:
    """Convolutions one after the other (groups "c0", "c1", ...), then a linear layer to ten classes."""
    builder = Builder()
    named = {f"c{i}": channels(width) for i, width in enumerate(widths)}
    into: Axis = IN
    for i, variable in enumerate(named.values()):
        builder.conv(f"conv{i}", variable, into)
        builder.norm(f"norm{i}", variable)
        into = variable
    builder.linear("fc", OUT, into)
    return builder.build(named)


def residual(width: int = 16, inner: int = 8, blocks: int = 3) -> HandGraph:
    """A residual net: one stream of ``width`` and an inner width for each block."""
    builder = Builder()
    stream = channels(width)
    named = {"stream": stream}
    builder.conv("stem", stream, IN)
    for i in range(blocks):
        named[f"block{i}"] = channels(inner)
        builder.conv(f"blocks.{i}.conv1", named[f"block{i}"], stream)
        builder.norm(f"blocks.{i}.norm1", named[f"block{i}"])
        builder.conv(f"blocks.{i}.conv2", stream, named[f"block{i}"])
    builder.linear("fc", OUT, stream)
    return builder.build(named, joined=("stream",))


def dense(layers: int, stem: int = 64, growth: int = 32, transition: int = 12) -> HandGraph:
    """A DenseNet: every layer reads the concatenation of all before it in its block."""
    builder = Builder()
    named = {"stem": channels(stem)}
    builder.conv("stem", named["stem"], IN)
    parts: list[Axis] = [named["stem"]]
    for i in range(layers):
        if i and i % transition == 0:
            before = concat(parts)
            named[f"transition{i}"] = channels(before.size // 2)
            builder.conv(f"transition{i}", named[f"transition{i}"], before, kernel=1)
            parts = [named[f"transition{i}"]]
        into = concat(parts)
        narrow, grown = channels(4 * growth), channels(growth)
        named |= {f"narrow{i}": narrow, f"grown{i}": grown}
        builder.norm(f"layers.{i}.norm1", into)
        builder.conv(f"layers.{i}.conv1", narrow, into, kernel=1)
        builder.norm(f"layers.{i}.norm2", narrow)
        builder.conv(f"layers.{i}.conv2", grown, narrow)
        parts = [*parts, grown]
    builder.linear("fc", OUT, concat(parts))
    return builder.build(named)


def attention(width: int = 32, heads: int = 4) -> HandGraph:
    """One attention block: packed qkv rows are three products heads x head_dim, plus a position table."""
    builder = Builder()
    stream, head, inner = channels(width), channels(heads), channels(width // heads)
    part = product((head, inner))
    builder.parameter("position", Fixed(16), stream)
    builder.norm("norm", stream)
    builder.linear("qkv", concat([part, product((head, inner)), product((head, inner))]), stream)
    builder.linear("proj", stream, part)
    builder.macs.append(Term("scores", 256.0, (head, inner)))
    builder.linear("fc", OUT, stream)
    return builder.build({"stream": stream, "heads": head, "head_dim": inner}, joined=("stream",))


def gathered(width: int = 12) -> HandGraph:
    """Units of unequal cost: the consumer reads unit 0 four times, unit 1 twice and the others once."""
    builder = Builder()
    units, after = channels(width), channels(6)
    index = np.array([0, 0, 0, 0, 1, 1, *range(2, width)], dtype=np.int64)
    builder.conv("first", units, IN)
    builder.conv("second", after, gather(units, index))
    builder.linear("fc", OUT, product((after, Fixed(4))))
    return builder.build({"units": units, "after": after})


def crossed_gather() -> HandGraph:
    """A gather over a product of two variables: no width alone gives its kept size."""
    builder = Builder()
    rows, columns = channels(4), channels(5)
    grid = product((rows, columns))
    index = np.arange(grid.size, dtype=np.int64)[::-1][:13].copy()
    builder.conv("first", grid, IN)
    builder.linear("fc", OUT, gather(grid, index))
    return builder.build({"rows": rows, "columns": columns})


def brute_force(terms: tuple[Term, ...], masks: Mapping[Channels, Mask]) -> float:
    """The cost counted element by element."""
    return sum(t.coefficient * math.prod(int(kept_mask(a, masks).sum()) for a in t.axes) for t in terms)
