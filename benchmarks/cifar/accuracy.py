"""How many images a network names rightly."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, batch_size: int = 250) -> float:
    """The share of ``images`` (N, 3, H, W) whose largest logit is at their label (N,), in eval mode."""
    model.eval()
    batches = zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True)
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
    return right / len(labels)
