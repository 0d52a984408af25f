"""Places where statistics are taken: the output of a graph node, as channel maps or as it is, and parameters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from fxprune.axes.elements import owned_by
from fxprune.axes.expressions import Axis, Channels, Fixed, IndexArray, variables

__all__ = ["Parameter", "Place", "Seen", "Tap", "channel_tap"]


@dataclass(frozen=True)
class Seen:
    """What a statistic is shown.

    Attributes:
        value: maps (samples, channels, ...) at a tap, the whole tensor at a raw tap or a parameter.
        gradient: of the loss summed over the samples, of the shape of ``value``; None where not asked for.
        samples: how many samples ran together.
        batch: the number of the batch.
        run: the number of the forward pass, of which a batch takes several where it runs sample by sample.
    """

    value: Tensor
    gradient: Tensor | None = None
    samples: int = 1
    batch: int = 0
    run: int = 0


@dataclass(frozen=True, eq=False)
class Tap:
    """The output of a node of the captured graph.

    With ``units`` it is read as maps (samples, units, ...): the remaining dims follow, and what a unit owns more than
    one element of (a head's dims) comes first among them. Without, the tensor is passed on as it is.

    Attributes:
        node: the node.
        units: how many channels the group has; 0 for a raw tap.
        channel_dim, batch_dim: dims of the node's value; ``batch_dim`` is None where no dim is the batch.
        index: elements of the channel dim, those of unit 0 first; None where element i is unit i.
        reader: a user of the node by whose use alone gradients are taken; None for all uses.
    """

    node: fx.Node
    units: int = 0
    channel_dim: int = 0
    batch_dim: int | None = None
    index: IndexArray | None = None
    reader: fx.Node | None = None

    def read(self, value: Tensor, batch: int | None) -> Tensor:
        """The maps of a value, given the number of samples of the batch where it is known."""
        if self.units == 0:
            return value
        if self.batch_dim is None:
            maps = value.movedim(self.channel_dim, 0).unsqueeze(0)
        else:
            maps = value.movedim((self.batch_dim, self.channel_dim), (0, 1))
        if self.index is not None:
            maps = maps.index_select(1, torch.from_numpy(self.index).to(value.device))
        rows = maps.shape[0]
        if maps.shape[1] != self.units:
            maps = maps.reshape(rows, self.units, -1, *maps.shape[2:])
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
    """The tap that reads the units of ``variable`` at a node; None where the node does not hold each equally often.

    Args:
        node: the node; its value is a tensor.
        axes: resolved axes of the value.
        variable: the group's variable.
        batch: the batch size that was traced.
    """
    dims = [d for d, axis in enumerate(axes) if any(v is variable for v in variables(axis))]
    if len(dims) != 1:
        return None
    (channel,) = dims
    units, elements = owned_by(axes[channel], variable)
    counts = np.bincount(units, minlength=variable.size)
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
