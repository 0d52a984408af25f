"""A habit as data: pieces of source around a value, and the step that puts them into a network."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, replace
from string import Template

from tests.nets.coupling import Axis, Coupling
from tests.nets.steps.step import Kept, Step

ANY = (4, 3, 2)
IMAGES = (4,)
TOKENS = (3,)
ROWS = (2,)
# Ranks at which channels are dim 1, as the layers of torch.nn that know channels want them.
SECOND = (4, 2)


@dataclass(frozen=True)
class Habit:
    """Source of a habit, with places to fill in.

    ``$x`` is the value read, ``$y`` the one made, ``$m`` a fresh name, ``$c`` and ``$o`` the channels read and made,
    ``$rank`` the dims after batch and channels, ``$n`` a size that no channel decides, ``$layer`` a layer from ``$c``
    to ``$o`` channels and ``$function`` the same as a function, ``$bn`` a batch norm, ``$v`` what brings a vector of
    channels to the value's shape, ``$w`` the same for a vector of ``$n``, ``$others`` all dims but that of channels.
    ``above`` stands above the class, ``train`` in the class's own ``train``, where ``mode`` is its argument.
    ``tensors`` names parameters and buffers, and for each its dims: ``c`` and ``o``, or ``k`` for a layer's weight.
    """

    forward: str
    init: str = ""
    above: str = ""
    train: str = ""
    tensors: tuple[tuple[str, str], ...] = ()
    ranks: tuple[int, ...] = ANY


def per_channel(*names: str) -> tuple[tuple[str, str], ...]:
    """Return tensors of one entry for each channel."""
    return tuple((name, "c") for name in names)


NORM = per_channel("$m.weight", "$m.bias", "$m.running_mean", "$m.running_var")
LAYER = (("$m.weight", "k"), ("$m.bias", "o"))


@dataclass(frozen=True)
class Habitual(Step):
    """A habit in its place; ``rank`` is that of the value, ``made`` the channels that it makes."""

    out: str
    source: str
    module: str
    habit: Habit
    channels: int
    made: int
    rank: int

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    @property
    def zero_preserving(self) -> bool:
        return False

    def _filled(self, text: str) -> str:
        image = self.rank == 4
        layer = f"nn.Conv2d({self.channels}, {self.made}, 1)" if image else f"nn.Linear({self.channels}, {self.made})"
        places = {
            "x": self.source,
            "y": self.out,
            "m": self.module,
            "c": self.channels,
            "o": self.made,
            "rank": 2 if image else 1,
            "n": f"{self.source}.shape[{ {4: 3, 3: 1, 2: 0}[self.rank] }]",
            "layer": layer,
            "function": "F.conv2d" if image else "F.linear",
            "bn": f"nn.BatchNorm{2 if image else 1}d({self.channels})",
            "v": "[:, None, None]" if image else "",
            "w": "" if image else "[:, None]",
            "others": {4: "(0, 2, 3)", 3: "(0, 1)", 2: "(0,)"}[self.rank],
        }
        return Template(text).substitute(places)

    def _written(self, text: str) -> str:
        return textwrap.dedent(self._filled(text)).strip("\n")

    def init_lines(self) -> tuple[str, ...]:
        return tuple(self._written(self.habit.init).splitlines())

    def above_lines(self) -> tuple[str, ...]:
        return (self._written(self.habit.above),) if self.habit.above else ()

    def train_lines(self) -> tuple[str, ...]:
        return tuple(self._written(self.habit.train).splitlines())

    def forward_line(self) -> str:
        return self._written(self.habit.forward)

    def _axes(self, net: Coupling, dims: str, out: Axis) -> Iterable[Axis]:
        channel = 1 if self.rank == 4 else -1
        inner = net.values[self.source][channel]
        if dims == "k":
            return (out, inner, *((net.fixed(1),) * (2 if self.rank == 4 else 0)))
        return tuple(inner if dim == "c" else out for dim in dims)

    def couple(self, net: Coupling) -> None:
        axes = list(net.values[self.source])
        channel = 1 if self.rank == 4 else len(axes) - 1
        layered = any(dims in "ok" for _, dims in self.habit.tensors)
        out = net.new(self.made) if layered else axes[channel]
        for name, dims in self.habit.tensors:
            net.parameter(self._filled(name), tuple(self._axes(net, dims, out)))
        axes[channel] = out
        net.define(self.out, tuple(axes))

    def narrowed(self, kept: Kept) -> Step:
        channel = 1 if self.rank == 4 else self.rank - 1
        return replace(self, channels=kept.size(self.source, channel), made=kept.size(self.out, channel))
