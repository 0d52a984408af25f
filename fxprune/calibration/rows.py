"""A convolution or linear layer as rows: the inputs and the outputs of each output position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxprune.rules.call import Call

_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
_LARGE = 10  # a row is large from this multiple of the median energy
_TRANSPOSED = {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}


@dataclass(frozen=True)
class LayerRows:
    """How one layer reads its input. A row belongs to one sample and output position."""

    kernel: tuple[int, ...] = ()  # extent of the kernel in each spatial dim; empty for a linear layer
    # One number for each spatial dim.
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    # Zeros before and after, for each spatial dim; negative if input is left out.
    padding: tuple[tuple[int, int], ...] = ()
    # The stride of a transposed convolution: it is a convolution with the kernel reversed, over an input with
    # ``spread - 1`` zeros between neighbours. Empty for other layers.
    spread: tuple[int, ...] = ()

    @classmethod
    def of(cls, call: Call, *, transposed: bool = False) -> LayerRows | None:
        """The rows of a call; None if it is neither linear nor a convolution (transposed ones only if asked for)."""
        weight = call.shape_of(call.arguments["weight"]) if call.has("weight") else ()
        if call.name == "linear" and len(weight) == 2:
            return cls()
        if call.name in _TRANSPOSED and transposed:
            return cls._of_transposed(call, tuple(weight[2:]))
        if call.name not in _CONVOLUTIONS or call.arguments.get("padding") is None:
            return None
        kernel = tuple(weight[2:])
        stride, dilation = (_each(call.number(name), len(kernel)) for name in ("stride", "dilation"))
        return cls(kernel, stride, dilation, _paddings(call.number("padding"), kernel, dilation))

    @classmethod
    def _of_transposed(cls, call: Call, kernel: tuple[int, ...]) -> LayerRows:
        count = len(kernel)
        stride, dilation, padding = (_each(call.number(name), count) for name in ("stride", "dilation", "padding"))
        sizes = zip(call.shape_of(call.arguments["input"])[-count:], call.output_shape[-count:], strict=True)
        sides = []
        for dim, (given, made) in enumerate(sizes):
            reach = (kernel[dim] - 1) * dilation[dim]
            before = reach - padding[dim]
            # The zeros after it follow from the output's size, which includes output_padding.
            sides.append((before, made + reach - before - ((given - 1) * stride[dim] + 1)))
        return cls(kernel, (1,) * count, dilation, tuple(sides), stride)

    @property
    def is_linear(self) -> bool:
        """Whether channels are the last dim, and positions are all dims between the first and the last."""
        return not self.kernel

    @property
    def input_dim(self) -> int:
        """The dim of the input channels in the weight."""
        return 0 if self.spread else 1

    def draw(self, output: Tensor, limit: int, generator: torch.Generator) -> Tensor:
        """Indices of at most ``limit`` output positions of a sample, ascending."""
        return _drawn(self.positions(output), limit, generator)

    def positions(self, output: Tensor) -> tuple[int, ...]:
        """The sizes of an output's positions."""
        if self.is_linear:
            return tuple(output.shape[1:-1] if output.ndim > 1 else ())
        return tuple(output.shape[-len(self.kernel) :])

    def draw_of_input(self, value: Tensor, limit: int, generator: torch.Generator) -> Tensor:
        """As :meth:`draw`, for the output that the layer computes from an input."""
        return _drawn(self.positions_of_input(value), limit, generator)

    def positions_of_input(self, value: Tensor) -> tuple[int, ...]:
        """As :meth:`positions`, for the output that the layer computes from an input."""
        if self.is_linear:
            return self.positions(value)
        spreads = self.spread or (1,) * len(self.kernel)
        extents = [(n - 1) * step + 1 for n, step in zip(value.shape[-len(self.kernel) :], spreads, strict=True)]
        geometry = (extents, self.padding, self.kernel, self.dilation, self.stride)
        return tuple(
            (extent + sum(sides) - (taps - 1) * spread - 1) // step + 1
            for extent, sides, taps, spread, step in zip(*geometry, strict=True)
        )

    def features(self, value: Tensor, groups: int, places: Tensor) -> Tensor:
        """The input values that the positions read: ``(groups, rows, channels of a group x kernel)``."""
        places = places.to(value.device)
        if self.is_linear:
            return _grid(value)[:, places].reshape(1, -1, value.shape[-1])
        value = self._spread(self._batched(value))
        padded = F.pad(value, [side for pair in reversed(self.padding) for side in pair])
        read = self._read(places, padded.shape[2:])
        picked = padded.flatten(2)[:, :, read.reshape(-1)].reshape(*padded.shape[:2], *read.shape)
        batch, channels, count, area = picked.shape
        rows = picked.transpose(1, 2).reshape(batch * count, groups, channels // groups * area)
        return rows.transpose(0, 1)

    def _read(self, places: Tensor, sizes: Sequence[int]) -> Tensor:
        """Flat indices into a padded input that the positions read: ``(positions, kernel)``."""
        geometry = list(zip(sizes, self.kernel, self.dilation, self.stride, strict=True))
        made = [(size - (taps - 1) * apart - 1) // step + 1 for size, taps, apart, step in geometry]
        found = torch.zeros(len(places), 1, dtype=torch.long, device=places.device)
        for start, (size, taps, apart, step) in zip(_unravelled(places, made), geometry, strict=True):
            offsets = torch.arange(taps, device=places.device) * apart
            offsets = offsets.flip(0) if self.spread else offsets
            read = (start * step).unsqueeze(1) + offsets
            found = (found.unsqueeze(2) * size + read.unsqueeze(1)).flatten(1)
        return found

    def counts(self, features: Tensor, samples: int) -> Tensor:
        """The weight of each row of ``(groups, rows, features)``, ``(rows,)``; see :func:`token_weights`."""
        if not self.is_linear:
            return features.new_ones(features.shape[1])
        return token_weights(features.square().sum((0, 2)), samples)

    def targets(self, output: Tensor, places: Tensor) -> Tensor:
        """The output values at the positions: ``(rows, channels)``."""
        places = places.to(output.device)
        if self.is_linear:
            return _grid(output)[:, places].reshape(-1, output.shape[-1])
        picked = self._batched(output).flatten(2)[:, :, places].transpose(0, 1)
        return picked.reshape(picked.shape[0], -1).mT

    def matrix(self, weight: Tensor, groups: int) -> Tensor:
        """A weight as ``(groups, output channels of a group, features)``, features ordered as in :meth:`features`."""
        if not self.spread:
            return weight.reshape(groups, weight.shape[0] // groups, -1)
        apart = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        return apart.transpose(1, 2).flatten(2)

    def weight(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        """A matrix as a weight of the given shape: the inverse of :meth:`matrix`."""
        if not self.spread:
            return matrix.reshape(tuple(shape))
        apart = matrix.reshape(matrix.shape[0], shape[1], shape[0] // matrix.shape[0], -1)
        return apart.transpose(1, 2).reshape(tuple(shape))

    def channels(self, value: Tensor) -> Tensor:
        """One value per output channel, in a shape that broadcasts against an output."""
        return value.reshape(-1, *(1,) * len(self.kernel))

    @property
    def channel_dim(self) -> int:
        """The dim of the output's channels, counted from its end."""
        return -1 - len(self.kernel)

    def _spread(self, value: Tensor) -> Tensor:
        """The value (samples, channels, ...) with zeros between neighbours."""
        for dim, step in enumerate(self.spread, 2):
            if step > 1:
                apart = value.new_zeros(*value.shape[: dim + 1], step, *value.shape[dim + 1 :])
                apart.select(dim + 1, 0).copy_(value)
                value = apart.flatten(dim, dim + 1).narrow(dim, 0, (value.shape[dim] - 1) * step + 1)
        return value

    def _batched(self, value: Tensor) -> Tensor:
        return value.unsqueeze(0) if value.ndim == len(self.kernel) + 1 else value


def token_weights(energy: Tensor, samples: int) -> Tensor:
    """The weight of each token, given its sum of squares, in the same shape; tokens come sample by sample.

    A token with far more than the median energy of its sample gets a smaller weight, so that it counts like one at the
    limit: the first token of a sequence may be a thousand times larger than others, and would dominate the fit.
    """
    each = energy.reshape(samples if samples and energy.numel() % samples == 0 else 1, -1)
    limit = _LARGE * each.median(1, keepdim=True).values if each.numel() else each
    return torch.where((each > limit) & (limit > 0), limit / each, torch.ones_like(each)).reshape(energy.shape)


def _drawn(sizes: Sequence[int], limit: int, generator: torch.Generator) -> Tensor:
    count = math.prod(sizes)
    if count <= limit:
        return torch.arange(count)
    return torch.randperm(count, generator=generator)[:limit].sort().values


def _grid(value: Tensor) -> Tensor:
    """The value as (samples, positions, channels)."""
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
