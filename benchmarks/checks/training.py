"""One step of training."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.capture.samples import Sample


class TrainingStepError(RuntimeError):
    """A network does not train: no gradient, or a value that is not finite."""


def train_one_step(model: nn.Module, sample_input: Any) -> int:
    """One step of SGD in train mode on a batch of two, with the mean square of all outputs as the loss.

    The model is left in eval mode, with the step taken.

    Returns:
        How many parameters had a gradient.

    Raises:
        TrainingStepError: the loss, a gradient or a parameter is not finite, or nothing has a gradient.
    """
    sample = _pair(Sample.from_input(sample_input))
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss = torch.stack([leaf.float().pow(2).mean() for leaf in _differentiable(sample.call(model))]).sum()
    torch.autograd.backward(loss)
    touched = {name: p for name, p in model.named_parameters() if p.grad is not None}
    if not touched:
        raise TrainingStepError("no parameter has a gradient")
    gradients = {f"the gradient of {name}": p.grad for name, p in touched.items() if p.grad is not None}
    _check_finite({"the loss": loss, **gradients})
    optimizer.step()
    _check_finite(touched)
    model.eval()
    return len(touched)


def _pair(sample: Sample) -> Sample:
    return sample.with_batch(2) if sample.batch_size is not None else sample


def _differentiable(outputs: Any) -> list[torch.Tensor]:
    leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    if not leaves:
        raise TrainingStepError("no output depends on a parameter")
    return leaves


def _check_finite(tensors: dict[str, Any]) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise TrainingStepError(f"{name} is not finite after one step")
