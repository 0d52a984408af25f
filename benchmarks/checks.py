"""Other batch sizes and resolutions: what the original takes, the pruned network must take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from benchmarks.harness import failure_text
from fxprune.capture.samples import Sample

_MORE_ROWS = 4
_MORE_PIXELS = 32


def follows_batch(original: nn.Module, pruned: nn.Module, sample_input: Any) -> str:
    """ "yes" if both give outputs of equal shapes at a larger batch, "fixed" if the original refuses it, or why not."""
    sample = Sample.from_input(sample_input)
    rows = sample.batch_size
    return "fixed" if rows is None else _compare(original, pruned, lambda: sample.with_batch(rows + _MORE_ROWS))


def follows_resolution(original: nn.Module, pruned: nn.Module, sample_input: Any) -> str:
    """The same for images that are larger by 32 pixels in both directions; "fixed" too where there is no image."""
    sample = Sample.from_input(sample_input)
    images = [t for t in sample.tensors if t.ndim in (4, 5) and t.is_floating_point()]
    return _compare(original, pruned, lambda: sample.map(_enlarged)) if images else "fixed"


def _enlarged(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.ndim not in (4, 5):
        return tensor
    *rest, height, width = tensor.shape
    return torch.randn(*rest, height + _MORE_PIXELS, width + _MORE_PIXELS).to(tensor)


def _compare(original: nn.Module, pruned: nn.Module, make: Callable[[], Sample]) -> str:
    sample = make()
    try:
        expected = output_shapes(original, sample)
    except Exception:  # whatever the original raises is its refusal
        return "fixed"
    try:
        found = output_shapes(pruned, sample)
    except Exception as error:
        return f"no: {failure_text(error)}"
    return "yes" if found == expected else f"no: output shapes {found} instead of {expected}"


@torch.no_grad()
def output_shapes(model: nn.Module, sample: Sample) -> list[tuple[int, ...]]:
    """The shapes of the tensors in the answer of ``model``."""
    leaves = pytree.tree_leaves(sample.call(model))
    return [tuple(leaf.shape) for leaf in leaves if isinstance(leaf, torch.Tensor)]


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
