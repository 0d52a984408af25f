"""Removed entries overwritten, and parameters randomised, on private copies."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor, nn

from .copies import named_tensors
from .selecting import Keep, removed_entries, select

__all__ = ["GAINS", "overwrite_removed", "randomise", "removes_anything"]

GAINS = (2.0, 1.0, 0.25)
"""Variances of random weights times their number of inputs, to be tried in turn.

The first is that of a rectified layer (He et al. 2015, eq. 10), which keeps deep layers visible in the outputs; some
networks magnify values or rounding too much with it.
"""


@torch.no_grad()
def overwrite_removed(module: nn.Module, keep: Keep, value: float) -> None:
    """Write ``value`` over every removed entry of every floating tensor of ``module``, a private copy.

    A running variance is left alone by a ``value`` of 0: a batch norm divides by it.
    """
    for name, tensor in named_tensors(module).items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        if value == 0 and name.endswith("running_var"):
            continue
        for dim, index in removed_entries(tensor, keep.get(name, ())):
            tensor.index_fill_(dim, index, value)


def removes_anything(module: nn.Module, keep: Keep) -> bool:
    """Whether the plan removes a single entry."""
    tensors = named_tensors(module).items()
    return any(True for name, tensor in tensors for _ in removed_entries(tensor, keep.get(name, ())))


@torch.no_grad()
def randomise(module: nn.Module, pruned: nn.Module, keep: Keep, seed: int, gain: float = GAINS[0]) -> None:
    """Give both private copies new random parameters and running statistics, equal where an entry is kept.

    The values depend on ``seed``, ``gain`` (one of ``GAINS``) and the name alone. Other buffers hold tables and masks
    that mean something, so they stay as they are.
    """
    full, narrow = named_tensors(module), named_tensors(pruned)
    done: set[int] = set()
    for name, tensor in full.items():
        if not _is_random(name, tensor):
            continue
        if id(tensor) not in done:
            done.add(id(tensor))
            _draw(tensor, name, seed, gain)
        if name in narrow:
            narrow[name].copy_(select(tensor, keep.get(name, ())))


def _is_random(name: str, tensor: Tensor) -> bool:
    statistics = name.endswith(("running_mean", "running_var"))
    return tensor.is_floating_point() and (isinstance(tensor, nn.Parameter) or statistics)


def _draw(tensor: Tensor, name: str, seed: int, gain: float) -> None:
    generator = torch.Generator(tensor.device).manual_seed(zlib.crc32(name.encode(errors="surrogatepass")) ^ seed)
    if name.endswith("running_var") or (tensor.ndim < 2 and bool((tensor >= 0).all())):
        tensor.uniform_(0.5, 1.5, generator=generator)
    elif tensor.ndim < 2:
        tensor.normal_(0, 0.1, generator=generator)
    else:
        # Of this variance, as normal values would be, and several times as fast to draw.
        fan_in = max(tensor.numel() // max(tensor.shape[0], 1), 1)
        bound = (3 * gain / fan_in) ** 0.5
        tensor.uniform_(-bound, bound, generator=generator)
