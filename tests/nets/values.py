"""Small helpers over what networks take and return."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Of float64 numbers about one: what is smaller than this is zero but for rounding.
ROUNDING = 1e-15


def flat(output: Any) -> list[Tensor]:
    """Return the tensors of an output: a tensor, a tuple or a dict of tensors."""
    if isinstance(output, Tensor):
        return [output]
    return list(output.values() if isinstance(output, dict) else output)


def in_double(values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return float tensors as float64, integers as they are."""
    return tuple(value.double() if value.is_floating_point() else value for value in values)


def relative_error(left: Any, right: Any) -> float:
    """Return the largest difference over all outputs, relative to the largest entry of each of them."""
    errors = [0.0]
    for ours, theirs in zip(flat(left), flat(right), strict=True):
        assert ours.shape == theirs.shape, f"shapes {tuple(ours.shape)} and {tuple(theirs.shape)}"
        assert torch.isfinite(ours).all(), "an output is not finite"
        scale = max(ROUNDING, theirs.abs().max().item())
        errors.append((ours - theirs).abs().max().item() / scale)
    return max(errors)
