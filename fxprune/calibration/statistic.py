"""Places where statistics are taken: the output of a graph node, as channel maps or as it is, and parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, fx

from fxprune.axes.elements import owned_by
from fxprune.axes.expressions import Axis, Channels, Fixed, IndexArray, variables


@dataclass(frozen=True)
class Seen:
    """What a statistic is shown."""

    value: Tensor  # maps (samples, channels, ...) at a tap, the whole tensor at a raw tap or a parameter
    # Of the loss summed over the samples, of the shape of ``value``; None where not asked for.
    gradient: Tensor | None = None
    samples: int = 1  # how many samples ran together
    batch: int = 0  # the number of the batch
    run: int = 0  # the number of the forward pass, of which a batch takes several where it runs sample by sample
    expected: float = 1.0  # about how many samples there will be, on all ranks together; one batch where nobody knows


@dataclass(frozen=True, eq=False)
class Tap:
    """The output of a node of the captured graph.

    With ``channels`` it is read as maps (samples, channels, ...): the remaining dims follow, and what a channel owns
    more than one element of (a head's dims) comes first among them. Without, the tensor is passed on as it is.
    """

    node: fx.Node
    channels: int = 0  # how many channels the group has; 0 for a raw tap
    # Dims of the node's value; ``batch_dim`` is None where no dim is the batch.
    channel_dim: int = 0
    batch_dim: int | None = None
    # Elements of the channel dim, those of channel 0 first; None where element i is channel i.
    index: IndexArray | None = None
    reader: fx.Node | None = None  # a user of the node by whose use alone gradients are taken; None for all uses

    @property
    def units(self) -> int:
        """The same, as it was called before."""
        return self.channels

    def read(self, value: Tensor, batch: int | None) -> Tensor:
        """The maps of a value, given the number of samples of the batch where it is known."""
        if self.channels == 0:
            return value
        if self.batch_dim is None:
            maps = value.movedim(self.channel_dim, 0).unsqueeze(0)
        else:
            maps = value.movedim((self.batch_dim, self.channel_dim), (0, 1))
        if self.index is not None:
            maps = maps.index_select(1, torch.from_numpy(self.index).to(value.device))
        rows = maps.shape[0]
        if maps.shape[1] != self.channels:
            maps = maps.reshape(rows, self.channels, -1, *maps.shape[2:])
        if batch and self.batch_dim is not None and rows != batch and rows % batch == 0:
            # Several rows a sample (windows of an image): they join the positions.
            maps = maps.reshape(batch, rows // batch, *maps.shape[1:]).movedim(1, -1)
        return maps


@dataclass(frozen=True)
class Parameter:
    """A parameter, by its first state-dict name."""

    name: str


Place = Tap | Parameter


def channel_tap(node: fx.Node, axes: tuple[Axis, ...], variable: Channels, batch: int | None) -> Tap | None:
    """The tap that reads the channels of ``variable`` at a node; None where it does not hold each equally often."""
    dims = [d for d, axis in enumerate(axes) if any(v is variable for v in variables(axis))]
    if len(dims) != 1:
        return None
    (channel,) = dims
    channels, elements = owned_by(axes[channel], variable)
    counts = np.bincount(channels, minlength=variable.size)
    if counts.min() < 1 or counts.min() != counts.max():
        return None
    plain = len(elements) == axes[channel].size == variable.size and bool((elements == np.arange(len(elements))).all())
    index = None if plain else elements
    return Tap(node, variable.size, channel, _batch_dim(axes, channel, batch), index)


def _batch_dim(axes: tuple[Axis, ...], channel: int, batch: int | None) -> int | None:
    if batch is None or batch == 0:
        return None
    fixed = [d for d, axis in enumerate(axes) if d != channel and isinstance(axis, Fixed)]
    if 0 in fixed and axes[0].size % batch == 0:
        return 0
    return next((d for d in fixed if axes[d].size == batch), None)


FloatArray = NDArray[np.float64]


@runtime_checkable
class Statistic(Protocol):
    """Takes in what is seen at one place, batch by batch, and keeps sums of it.

    Attributes:
        needs: "value", "gradient" (the gradient of the loss is wanted too) or "sample gradient" (sample by sample).
    """

    @property
    def needs(self) -> str:
        """What :meth:`update` reads."""
        ...

    def update(self, seen: Seen) -> None:
        """Take in one batch."""
        ...

    def sums(self) -> Iterable[Tensor]:
        """The accumulators, in a fixed order and of shapes that do not depend on the data; they add up over ranks."""
        ...


class Sums:
    """A base for statistics: float64 accumulators of the given shapes, by name."""

    needs = "value"

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        self.held = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}

    def add(self, name: str, value: Tensor | float) -> None:
        """Add ``value`` to the accumulator of that name."""
        held = self.held[name]
        if isinstance(value, Tensor) and held.device != value.device:
            self.held[name] = held = held.to(value.device)
        held += value

    def sums(self) -> Iterable[Tensor]:
        """Every accumulator."""
        return list(self.held.values())

    def array(self, name: str) -> FloatArray:
        """An accumulator as a numpy array."""
        found: FloatArray = self.held[name].cpu().numpy()
        return found


class Mean(Sums):
    """The mean over all samples of ``measure``: from maps (samples, channels, ...) to (samples, channels)."""

    def __init__(self, channels: int, measure: Callable[[Tensor], Tensor]) -> None:
        super().__init__(total=(channels,), samples=())
        self._measure = measure

    def update(self, seen: Seen) -> None:
        """Take in one batch."""
        self.add("total", self._measure(seen.value).sum(0, dtype=torch.float64))
        self.add("samples", float(seen.value.shape[0]))

    def result(self) -> FloatArray:
        """Shape ``(channels,)``."""
        return self.array("total") / max(float(self.held["samples"]), 1.0)


def ranks() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_distributed() -> bool:
    """Whether several processes work together."""
    return ranks() > 1


def least_over_ranks(number: int) -> int:
    """The least of the numbers that all ranks give."""
    if not is_distributed():
        return number
    held = torch.tensor([number], device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(held, dist.ReduceOp.MIN)
    return int(held)


def add_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their sums over all ranks, which have to call this with the same shapes in the same order."""
    if not is_distributed():
        return
    for tensor in tensors:
        # The backend decides where tensors have to be: nccl takes no tensor of the CPU.
        moved = tensor.to("cuda") if dist.get_backend() == "nccl" and not tensor.is_cuda else tensor.contiguous()
        dist.all_reduce(moved)
        with torch.no_grad():
            tensor.copy_(moved)
