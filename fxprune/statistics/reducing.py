"""Sums over the ranks of an initialised ``torch.distributed``: each rank feeds its shard of the calibration data."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["add_over_ranks", "is_distributed"]


def is_distributed() -> bool:
    """Whether several processes work together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def add_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Replace every tensor by its sum over all ranks; nothing happens in a single process.

    Every rank has to call this with tensors of the same shapes in the same order.
    """
    if not is_distributed():
        return
    for tensor in tensors:
        # The backend decides where tensors have to be: nccl takes no tensor of the CPU.
        moved = tensor.to("cuda") if dist.get_backend() == "nccl" and not tensor.is_cuda else tensor.contiguous()
        dist.all_reduce(moved)
        with torch.no_grad():
            tensor.copy_(moved)
