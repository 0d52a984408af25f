"""Places where statistics are taken: the output of a graph node (as channel maps or raw), and parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, fx

from fxprune.axes.elements import FloatArray, owned_by
from fxprune.axes.expressions import Axis, Channels, Fixed, IndexArray, variables

if TYPE_CHECKING:
    from fxprune.calibration.balance import Weights


@dataclass(frozen=True)
class Seen:
    """The input of a statistic: the values at one place for one forward pass."""

    value: Tensor  # maps (samples, channels, ...) at a tap, the whole tensor at a raw tap or a parameter
    # The gradient of the loss summed over the samples, in the shape of ``value``; None if not requested.
    gradient: Tensor | None = None
    samples: int = 1  # the number of samples that ran together
    batch: int = 0  # the number of the batch
    run: int = 0  # the number of the forward pass; a batch that runs sample by sample takes several
    expected: float = 1.0  # about how many samples there will be on all ranks; one batch if unknown
    weights: Weights | None = None  # how much each position counts; None if all count alike


@dataclass(frozen=True, eq=False)
class Tap:
    """The output of a node of the captured graph.

    With ``channels`` it is read as maps (samples, channels, ...), followed by the remaining dims; if a channel owns
    several elements (a head's dims), they are the first of these. Without, the tensor is passed on unchanged.
    """

    node: fx.Node
    channels: int = 0  # the number of channels of the group; 0 for a raw tap
    # Dims of the node's value; ``batch_dim`` is None if no dim is the batch.
    channel_dim: int = 0
    batch_dim: int | None = None
    # Elements of the channel dim, those of channel 0 first; None if element i is channel i.
    index: IndexArray | None = None
    reader: fx.Node | None = None  # gradients are taken through this user of the node alone; None for all users

    @property
    def units(self) -> int:
        """The former name of ``channels``."""
        return self.channels

    def read(self, value: Tensor, batch: int | None) -> Tensor:
        """The maps of a value; ``batch`` is the number of samples of the batch, or None if unknown."""
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
            # Several rows per sample (windows of an image): they become positions.
            maps = maps.reshape(batch, rows // batch, *maps.shape[1:]).movedim(1, -1)
        return maps


@dataclass(frozen=True)
class Parameter:
    """A parameter, by its first state-dict name."""

    name: str


Place = Tap | Parameter


def channel_tap(node: fx.Node, axes: tuple[Axis, ...], variable: Channels, batch: int | None) -> Tap | None:
    """The tap that reads the channels of ``variable`` at a node; None if it does not hold each equally often."""
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


@runtime_checkable
class Statistic(Protocol):
    """Accumulates sums of the values at one place, batch by batch.

    Attributes:
        needs: "value", "gradient" (also the gradient of the loss) or "sample gradient" (the same, sample by sample).
    """

    @property
    def needs(self) -> str:
        """The values that :meth:`update` reads."""
        ...

    def update(self, seen: Seen) -> None:
        """Take in one batch."""
        ...

    def sums(self) -> Iterable[Tensor]:
        """The accumulators, in a fixed order and with shapes independent of the data; they are summed over ranks."""
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
    """The mean over all samples of ``measure``, which maps (samples, channels, ...) to (samples, channels)."""

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
    """The number of ranks (processes) of ``torch.distributed``; 1 without it."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_distributed() -> bool:
    """Whether there are several ranks."""
    return ranks() > 1


def least_over_ranks(number: int) -> int:
    """The smallest ``number`` of all ranks."""
    if not is_distributed():
        return number
    held = torch.tensor([number], device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(held, dist.ReduceOp.MIN)
    return int(held)


def add_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their sums over all ranks, which must call this with the same shapes in the same order."""
    if not is_distributed():
        return
    for tensor in tensors:
        # The backend decides where tensors must be: nccl does not accept CPU tensors.
        moved = tensor.to("cuda") if dist.get_backend() == "nccl" and not tensor.is_cuda else tensor.contiguous()
        dist.all_reduce(moved)
        with torch.no_grad():
            tensor.copy_(moved)
