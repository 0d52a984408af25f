"""Depthwise convolutions of clips as sums over the taps of the kernel: several times faster in float64 on the CPU."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_CONVOLUTION = torch.ops.aten.convolution.default
_CLIP_DIMS = 5


def is_summed(func: torch._ops.OpOverload, args: tuple[Any, ...]) -> bool:
    """Whether a call is a depthwise convolution of clips without strides, not transposed, on the CPU."""
    if func is not _CONVOLUTION or args[6] or args[0].dim() != _CLIP_DIMS or not args[0].is_cpu:
        return False
    return bool(1 < args[8] == args[0].shape[1] == len(args[1]) and set(args[3]) == {1})


def by_taps(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: list[int], dilation: list[int], *rest: Any
) -> Tensor:
    """The arguments of ``aten.convolution``: (batch, channels, ...) with a weight (channels, 1, ...)."""
    x = F.pad(x, [amount for size in reversed(padding) for amount in (size, size)])
    kernel = weight.shape[2:]
    left = [size - d * (k - 1) for size, d, k in zip(x.shape[2:], dilation, kernel, strict=True)]
    taps = weight.flatten(1).unbind(1)
    total = x.new_zeros((*x.shape[:2], *left))
    for values, tap in zip(taps, itertools.product(*map(range, kernel)), strict=True):
        part = x
        for dim, (number, apart, size) in enumerate(zip(tap, dilation, left, strict=True), start=2):
            part = part.narrow(dim, number * apart, size)
        total.addcmul_(part, _per_channel(values, x))
    return total if bias is None else total.add_(_per_channel(bias, x))


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (x.dim() - 2))
