"""What every step can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from tests.nets.coupling import Axis, Coupling


class Kept(Protocol):
    """Which indices of each dim of each named value stay."""

    def positions(self, name: str, dim: int) -> tuple[int, ...]:
        """Return the kept indices, ascending, in the numbering of the original."""

    def size(self, name: str, dim: int) -> int:
        """Return how many indices are kept."""


class Step(ABC):
    """One statement of ``forward`` over named values."""

    def normalised(self, net: Coupling) -> Axis:
        """Return the cells over which entries set to zero are not the same as removed ones (a layer norm's)."""
        return ()

    def contracted(self, net: Coupling) -> Axis:
        """Return the cells over which activations are summed without a weight that could mask them."""
        return ()

    @property
    def zero_preserving(self) -> bool:
        """Whether zero goes to zero."""
        return True

    @abstractmethod
    def outputs(self) -> tuple[str, ...]:
        """Return the names of the values this step makes."""

    def init_lines(self) -> tuple[str, ...]:
        """Return the lines of ``__init__`` that this step needs; steps that share a module return the same lines."""
        return ()

    def above_lines(self) -> tuple[str, ...]:
        """Return the functions, classes and tables that stand above the class of the network."""
        return ()

    def train_lines(self) -> tuple[str, ...]:
        """Return the lines of the network's own ``train``; without any it has none."""
        return ()

    @abstractmethod
    def forward_line(self) -> str:
        """Return this step as a line, or lines, of ``forward``."""

    @abstractmethod
    def couple(self, net: Coupling) -> None:
        """State how the cells of the inputs, parameters and outputs hang together, and define the outputs."""

    def narrowed(self, kept: Kept) -> Step:
        """Return this step for the kept sizes; steps that write no size down return themselves."""
        return self

    def macs(self, net: Coupling) -> int:
        """Return multiply-accumulates per example, counting convolutions, linear layers and matrix products."""
        return 0


def join(*parts: str) -> str:
    """Return the arguments of a call, empty ones left out."""
    return ", ".join(part for part in parts if part)
