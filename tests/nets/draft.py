"""A specification while it is being written: fresh names, known sizes, and short verbs for common steps."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol, TypeVar

from tests.nets.coupling import Coupling
from tests.nets.specification import Input
from tests.nets.steps.convolution import Convolution
from tests.nets.steps.linear import Linear
from tests.nets.steps.norms import BatchNorm
from tests.nets.steps.pieces import Split
from tests.nets.steps.pointwise import Binary, Pointwise
from tests.nets.steps.shapes import PURE_BATCH, Permute, Reshape, Segment
from tests.nets.steps.step import Step

T = TypeVar("T")
ACTIVATIONS = ("relu", "gelu", "silu", "sigmoid", "tanh", "hardswish", "relu_in_place", "relu6", "leaky_relu")


class Chooser(Protocol):
    """Where choices come from: hypothesis, or a seeded generator."""

    def integer(self, low: int, high: int) -> int:
        """Return an integer from ``low`` to ``high``, both included; a shrinking source prefers ``low``."""


class SeededChooser:
    """Choices from a seeded generator, for long runs outside hypothesis."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        """Return a uniform integer."""
        return self._random.randint(low, high)


class Draft:
    """Steps so far, coupled as they come so that sizes are always known."""

    def __init__(self, chooser: Chooser) -> None:
        self._chooser = chooser
        self._count = 0
        self.inputs: list[Input] = []
        self.steps: list[Step] = []
        self.net = Coupling()

    def integer(self, low: int, high: int) -> int:
        """Draw an integer, both bounds included."""
        return self._chooser.integer(low, high)

    def flag(self) -> bool:
        """Draw a coin; the simple answer is False."""
        return self.integer(0, 1) == 1

    def choice(self, options: Sequence[T]) -> T:
        """Draw one of several; the simple answer comes first."""
        return options[self.integer(0, len(options) - 1)]

    def width(self, multiple_of: int = 1, largest: int = 16) -> int:
        """Draw a number of channels, at least 2."""
        low = 1 if multiple_of > 1 else 2
        return multiple_of * self.integer(low, max(low, largest // multiple_of))

    def divisor(self, size: int, smallest: int = 1) -> int:
        """Draw a divisor of ``size`` that is at least ``smallest``."""
        return self.choice([n for n in range(smallest, size + 1) if size % n == 0])

    def name(self, kind: str = "v") -> str:
        """Return a name that is not taken."""
        self._count += 1
        return f"{kind}{self._count}"

    def sizes(self, value: str) -> tuple[int, ...]:
        """Return the shape of a value for a batch of one."""
        return self.net.sizes(value)

    def input(self, shape: tuple[int, ...], vocabulary: int = 0) -> str:
        """Add an input."""
        entry = Input(self.name("x"), shape, vocabulary)
        self.inputs.append(entry)
        self.net.define(entry.name, tuple(self.net.fixed(size) for size in (1, *shape)))
        return entry.name

    def add(self, step: Step) -> str:
        """Add a step and return the name of its first output, empty where it has none."""
        step.couple(self.net)
        self.steps.append(step)
        return next(iter(step.outputs()), "")

    def conv(self, x: str, channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> str:
        """Add a convolution, spelled as a module or on bare parameters."""
        inner, rank = self.sizes(x)[1], len(self.sizes(x)) - 2
        name, bias, functional = self.name("conv"), self.flag(), self.integer(0, 5) == 5
        step = Convolution(self.name(), x, name, inner, channels, kernel, stride, groups, bias, rank)
        return self.add(step if not functional else Convolution(**{**vars(step), "functional": True}))

    def linear(self, x: str, features: int) -> str:
        """Add a linear layer, spelled as a module or on bare parameters."""
        inner, bias, functional = self.sizes(x)[-1], self.flag(), self.integer(0, 5) == 5
        return self.add(Linear(self.name(), x, self.name("linear"), inner, features, bias, functional))

    def activation(self, x: str) -> str:
        """Add an activation, spelled as a module or a function."""
        return self.function(x, self.choice(ACTIVATIONS))

    def function(self, x: str, function: str) -> str:
        """Add one named function of each element; in place only on a value that nothing else has read yet."""
        if function == "relu_in_place" and not isinstance(self.steps[-1], Convolution | Linear | BatchNorm):
            function = "relu"
        return self.add(Pointwise(self.name(), x, function, self.name("act") if self.flag() else ""))

    def binary(self, left: str, right: str, operator: str = "+") -> str:
        """Add arithmetic of two values; sums are sometimes written in place."""
        in_place = self.sizes(left) == self.sizes(right) and self.integer(0, 3) == 3
        return self.add(Binary(self.name(), left, right, operator, in_place))

    def split(self, x: str, dim: int, sizes: Sequence[int]) -> list[str]:
        """Cut a dim into pieces, spelled as a split, as slices or, where torch cuts alike, as a chunk."""
        total = sum(sizes)
        step = -(-total // len(sizes))
        as_chunk = [min(step, total - at) for at in range(0, total, step)]
        styles = ("split", "slices", "chunk") if list(sizes) == as_chunk else ("split", "slices")
        names = tuple(self.name() for _ in sizes)
        self.add(Split(names, x, dim, tuple(sizes), self.choice(styles)))
        return list(names)

    def permute(self, x: str, *dims: int) -> str:
        """Reorder dims."""
        return self.add(Permute(self.name(), x, dims, self.flag()))

    def reshape(self, x: str, *segments: tuple[int, tuple[int, ...]], style: str = "") -> str:
        """Reshape what follows the batch, one ``(input dims, sizes)`` for each segment."""
        parts = (PURE_BATCH, *(Segment(count, sizes) for count, sizes in segments))
        return self.add(Reshape(self.name(), x, parts, style or self.choice(_styles(parts))))


def _styles(segments: tuple[Segment, ...]) -> list[str]:
    """Return the spellings that a reshape has."""
    styles = ["literal", "minus_one", "minus_one_first", "shape"]
    changed = [segment for segment in segments if segment.inputs != 1 or len(segment.sizes) != 1]
    if len(changed) == 1 and len(changed[0].sizes) == 1:
        styles.append("flatten")
    if len(changed) == 1 and changed[0].inputs == 1:
        styles.append("unflatten")
    if any(segment.inputs > 1 and len(segment.sizes) > 1 for segment in segments):
        styles.remove("shape")
    return styles
