"""A convolution or linear layer as rows: what each output position reads, and what it gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxprune.rules.call import Call

__all__ = ["LayerRows"]

_CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}


@dataclass(frozen=True)
class LayerRows:
    """How one layer reads its input. A row belongs to one sample and output position.

    Attributes:
        kernel: extent of the kernel in each dim slid over; empty for a linear layer.
        stride, dilation: one number for each such dim.
        padding: zeros before and after, for each such dim.
    """

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, call: Call) -> LayerRows | None:
        """The reading of a call; None where it is no convolution (without transposition) and no linear layer."""
        weight = call.shape_of(call.arguments["weight"]) if call.has("weight") else ()
        if call.name == "linear" and len(weight) == 2:
            return cls()
        if call.name not in _CONVOLUTIONS or call.arguments.get("padding") is None:
            return None
        kernel = tuple(weight[2:])
        stride, dilation = (_each(call.number(name), len(kernel)) for name in ("stride", "dilation"))
        return cls(kernel, stride, dilation, _paddings(call.number("padding"), kernel, dilation))

    @property
    def is_linear(self) -> bool:
        """Whether channels are the last dim, and a position is anything before it."""
        return not self.kernel

    def draw(self, output: Tensor, limit: int, generator: torch.Generator) -> Tensor:
        """Indices of at most ``limit`` output positions of a sample, ascending."""
        if self.is_linear:
            return _drawn(output.shape[1:-1] if output.ndim > 1 else (), limit, generator)
        return _drawn(output.shape[-len(self.kernel) :], limit, generator)

    def draw_of_input(self, value: Tensor, limit: int, generator: torch.Generator) -> Tensor:
        """As :meth:`draw`, for the output that the layer makes of an input."""
        if self.is_linear:
            return self.draw(value, limit, generator)
        geometry = (value.shape[-len(self.kernel) :], self.padding, self.kernel, self.dilation, self.stride)
        sizes = [
            (extent + sum(sides) - (taps - 1) * spread - 1) // step + 1
            for extent, sides, taps, spread, step in zip(*geometry, strict=True)
        ]
        return _drawn(sizes, limit, generator)

    def features(self, value: Tensor, groups: int, places: Tensor) -> Tensor:
        """What the positions read of an input: ``(groups, rows, channels of a group x kernel)``."""
        places = places.to(value.device)
        if self.is_linear:
            return _grid(value)[:, places].reshape(1, -1, value.shape[-1])
        value = self._batched(value)
        windows = F.pad(value, [side for pair in reversed(self.padding) for side in pair])
        for dim, (size, step, dilation) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True)):
            windows = windows.unfold(2 + dim, (size - 1) * dilation + 1, step)[..., ::dilation]
        index = _unravelled(places, windows.shape[2 : 2 + len(self.kernel)])
        picked = windows.movedim((0, 1), (-2, -1))[tuple(index)].movedim((-2, -1), (0, 1)).flatten(3)
        batch, channels, count, area = picked.shape
        rows = picked.permute(1, 0, 2, 3).reshape(groups, channels // groups, batch * count, area)
        return rows.transpose(1, 2).reshape(groups, batch * count, -1)

    def targets(self, output: Tensor, groups: int, places: Tensor) -> Tensor:
        """What an output holds at the positions: ``(groups, rows, channels of a group)``."""
        places = places.to(output.device)
        if self.is_linear:
            return _grid(output)[:, places].reshape(1, -1, output.shape[-1])
        picked = self._batched(output).flatten(2)[:, :, places].transpose(0, 1)
        return picked.reshape(groups, picked.shape[0] // groups, -1).mT

    def channels(self, value: Tensor) -> Tensor:
        """Numbers of output channels in a shape that broadcasts against an output."""
        return value.reshape(-1, *(1,) * len(self.kernel))

    @property
    def channel_dim(self) -> int:
        """The dim of the output's channels, counted from its end."""
        return -1 - len(self.kernel)

    def _batched(self, value: Tensor) -> Tensor:
        return value.unsqueeze(0) if value.ndim == len(self.kernel) + 1 else value


def _drawn(sizes: Sequence[int], limit: int, generator: torch.Generator) -> Tensor:
    count = math.prod(sizes)
    if count <= limit:
        return torch.arange(count)
    return torch.randperm(count, generator=generator)[:limit].sort().values


def _grid(value: Tensor) -> Tensor:
    """(samples, positions, channels)."""
    value = value if value.ndim > 1 else value.unsqueeze(0)
    return value.reshape(value.shape[0], -1, value.shape[-1])


def _unravelled(places: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    found = []
    for size in reversed(sizes):
        found.append(places % size)
        places = places // size
    return found[::-1]


def _each(value: Any, count: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return tuple(int(v) for v in (values * count if len(values) == 1 else values))


def _paddings(value: Any, kernel: Sequence[int], dilation: Sequence[int]) -> tuple[tuple[int, int], ...]:
    if value == "valid":
        return ((0, 0),) * len(kernel)
    if value == "same":
        totals = [(size - 1) * spread for size, spread in zip(kernel, dilation, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((side, side) for side in _each(value, len(kernel)))
