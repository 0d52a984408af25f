"""Other batch sizes and resolutions: what the original takes, the pruned network must take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from benchmarks.harness.failures import failure_text
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
