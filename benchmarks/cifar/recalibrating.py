"""Batch norm statistics measured anew: the cheapest recovery there is."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def recalibrate(model: nn.Module, images: torch.Tensor, batch_size: int = 128) -> None:
    """Set the running statistics of batch norms to their mean over ``images``, in place; ends in eval mode."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
            # None makes torch average over all batches.
            module.momentum = None
    model.train()
    for batch in images.split(batch_size):
        model(batch)
    model.eval()
