"""Layers that algebra judges for all values at once: a sum over channels of products with a weight.

A weight has zeros where entries of it go. So what goes of the input adds nothing whatever it holds, what stays meets
the weights that stay if both keep the same channels in the same order, and what goes of the output is zero. The other
arguments of both layers are equal, and the narrow weight is the kept part of the full one: that was compared before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxprune.proof.nodes.claims import Kept

__all__ = ["Product", "product_of"]

_Convolution = nn.modules.conv._ConvNd
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ORDINARY = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


@dataclass(frozen=True)
class Product:
    """A layer that multiplies the channels of its input with a weight.

    Attributes:
        dim: that of the channels of input and output.
        inputs: the dim of the weight that meets the input's channels.
        outputs: the dim that gives the output's.
        full: the full layer, or None for a call of the function.
    """

    dim: int
    inputs: int
    outputs: int
    full: nn.Module | None = None

    def fits(self, given: Kept, weight: Kept, bias: Kept | None, result: Kept, ndim: int) -> bool:
        """Whether input, weight, bias and output keep the same channels, in the same order, and lose nothing else."""
        dim = self.dim % ndim
        ends = {self.inputs, self.outputs}
        if any(kept is not None for number, kept in enumerate(weight) if number not in ends):
            return False
        if any(kept is not None for value in (given, result) for number, kept in enumerate(value) if number != dim):
            return False
        outputs = _at(weight, self.outputs)
        return (
            _same(_at(given, dim), _at(weight, self.inputs))
            and _same(_at(result, dim), outputs)
            and (bias is None or _same(_at(bias, 0), outputs))
        )

    def shape(self, given: torch.Size, weight: torch.Size) -> list[int] | None:
        """That of the output, or None where it is not known, or the input does not fit."""
        if given[self.dim] != weight[self.inputs]:
            return None
        if self.dim == -1:
            return [*given[:-1], weight[self.outputs]]
        assert isinstance(self.full, _Convolution)
        if len(given) != len(weight):
            return None
        sides = _sides(self.full, given[2:])
        return None if sides is None or min(sides) < 1 else [given[0], weight[self.outputs], *sides]


def product_of(node: fx.Node, modules: tuple[nn.Module, nn.Module] | None) -> Product | None:
    """The layer that a node calls, where it is one of this kind; ``modules``: of the full and the narrow network."""
    if node.target is F.linear:
        return Product(-1, 1, 0) if len(node.args) in (2, 3) and not node.kwargs else None
    if modules is None or type(modules[0]) is not type(modules[1]) or type(modules[0]) not in _ORDINARY:
        return None
    full, narrow = modules
    if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
        return None
    if isinstance(full, _Convolution):
        assert isinstance(narrow, _Convolution)
        if full.groups != 1 or narrow.groups != 1:
            return None
        return Product(1, 0, 1, full) if isinstance(full, _TRANSPOSED) else Product(1, 1, 0, full)
    return Product(-1, 1, 0, full)


def _at(kept: Kept, dim: int) -> Tensor | None:
    return kept[dim] if dim < len(kept) else None


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one is other or torch.equal(one.cpu(), other.cpu())


def _sides(layer: Any, sides: Sequence[int]) -> list[int] | None:
    """The sides of the maps that a convolution gives."""
    numbers = zip(sides, layer.kernel_size, layer.stride, layer.dilation, strict=True)
    reaches = [(size, dilation * (kernel - 1), stride) for size, kernel, stride, dilation in numbers]
    if layer.padding == "same":
        return list(sides)
    padding = [0] * len(sides) if isinstance(layer.padding, str) else layer.padding
    if isinstance(layer, _TRANSPOSED):
        return [
            (size - 1) * stride - 2 * pad + reach + more + 1
            for (size, reach, stride), pad, more in zip(reaches, padding, layer.output_padding, strict=True)
        ]
    return [
        (size + 2 * pad - reach - 1) // stride + 1 for (size, reach, stride), pad in zip(reaches, padding, strict=True)
    ]
