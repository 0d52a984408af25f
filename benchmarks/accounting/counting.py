"""How the papers count: FLOPs of one forward and parameters, of any network made of torch.nn modules.

Four rules are in use. ``macs``: the multiply-accumulates of convolutions and linear layers, once. ``thop``: the same,
and two for every element that a batch norm gives. ``early_thop``: the same, one for every element of a rectifier and
the window's size for every element that a pool gives; of a module that is called several times the last call counts,
as in that counter's first versions. ``foad``: two for every multiply-accumulate, the biases of linear layers, two for
every element of a batch norm, one for every element of a rectifier, and the window's size for every element that a
pool gives.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_Conv = (nn.Conv2d, nn.ConvTranspose2d)
_Pool = (nn.MaxPool2d, nn.AvgPool2d)


@dataclass(frozen=True)
class CountingRule:
    """What one element of each kind of layer costs.

    Attributes:
        name: as the tables print it.
        mac: one multiply-accumulate.
        norm: one element of a batch norm.
        rectifier: one element of a ReLU or PReLU.
        pool: one element in a window of a pool.
        linear_bias: one bias of a linear layer.
        last_call: whether only the last call of a module counts.
    """

    name: str
    mac: int = 1
    norm: int = 0
    rectifier: int = 0
    pool: int = 0
    linear_bias: int = 0
    last_call: bool = False

    def of(self, module: nn.Module, taken: torch.Tensor, given: torch.Tensor) -> int:
        """The cost of one call of a module on a single sample."""
        if isinstance(module, _Conv):
            positions = taken if isinstance(module, nn.ConvTranspose2d) else given
            return self.mac * math.prod(positions.shape[2:]) * module.weight.numel()
        if isinstance(module, nn.Linear):
            rows = given.numel() // module.out_features
            return rows * (self.mac * module.weight.numel() + self.linear_bias * _size(module.bias))
        if isinstance(module, nn.BatchNorm2d):
            return self.norm * given.numel()
        if isinstance(module, (nn.ReLU, nn.PReLU)):
            return self.rectifier * given.numel()
        return self.pool * given.numel() * _window(module) if isinstance(module, _Pool) else 0


MACS = CountingRule("MACs")
THOP = CountingRule("MACs + 2 per batch-norm element", norm=2)
EARLY_THOP = CountingRule("MACs + 2 per batch-norm element, ReLU, pools", 1, 2, 1, 1, last_call=True)
FOAD = CountingRule("2 per MAC, 2 per batch-norm element, ReLU, pools", 2, 2, 1, 1, 1)


def _size(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel()


def _window(pool: nn.Module) -> int:
    size: Any = pool.kernel_size
    return int(size * size if isinstance(size, int) else math.prod(size))


def count_flops(model: nn.Module, shape: tuple[int, ...], rule: CountingRule) -> int:
    """FLOPs of one sample of ``shape`` (without the batch) under a rule; layers called as modules are seen."""
    counts: dict[nn.Module, int] = defaultdict(int)

    def note(module: nn.Module, taken: tuple[Any, ...], given: Any) -> None:
        before = 0 if rule.last_call else counts[module]
        counts[module] = before + rule.of(module, taken[0], given)

    with _hooked(model, note), torch.no_grad():
        model(torch.zeros(1, *shape))
    return sum(counts.values())


def count_parameters(model: nn.Module) -> int:
    """Elements of all parameters, each tensor once; running statistics are no parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def _hooked(model: nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    leaves = [m for m in model.modules() if next(m.children(), None) is None]
    handles = [leaf.register_forward_hook(hook) for leaf in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
