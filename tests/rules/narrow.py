"""Expected outputs by hand, for ops that run over pruned channels and for which zeros are the wrong stand-in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.rules.cases import Joined, Layout, Narrow, Residual, Shared
from tests.rules.oracles import Kept

_CONVOLUTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}
NarrowOp = Callable[[Any, Kept, Tensor], Tensor]


def read(layer: nn.Module, h: Tensor, columns: Tensor) -> Tensor:
    """A linear layer or a convolution of kernel one on the kept columns only."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    if isinstance(layer, nn.Linear):
        return F.linear(h, weight[:, columns], bias)  # type: ignore[arg-type]
    return _CONVOLUTIONS[type(layer)](h, weight[:, columns], bias)  # type: ignore[arg-type,index]


def around(layout: Layout, op: NarrowOp) -> Narrow:
    """The network of a layout where ``op(net, kept, h)`` computes the middle from selected channels ``h``."""

    def narrow(net: Any, kept: Kept, args: tuple[Any, ...]) -> Any:
        h = net.first(*args).index_select(layout.dim, kept("first.weight"))
        result, columns = op(net, kept, h), kept("last.weight", 1)
        if isinstance(net, Residual):
            return read(net.last, h + result, columns)
        if isinstance(net, Joined):
            return read(net.last, torch.cat((result, h), layout.dim), columns)
        if isinstance(net, Shared):
            return read(net.last, result, columns), read(net.other, h, kept("other.weight", 1))
        return read(net.last, result, columns)

    return narrow


def same_op(layout: Layout, op: Callable[[Tensor], Tensor]) -> Narrow:
    """The op itself on the selected channels: "the same network, narrower"."""
    return around(layout, lambda net, kept, h: op(h))
