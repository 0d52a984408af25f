"""The loss whose gradients criteria read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from fxprune.errors import CalibrationError

__all__ = ["Loss", "default_loss"]

Loss = Callable[[Any, Any], torch.Tensor]


def default_loss(output: Any, target: Any) -> torch.Tensor:
    """Mean cross-entropy of logits (N, classes, ...) against class indices (N, ...) or class shares like the logits.

    Raises:
        CalibrationError: output and target are something else; says what, and asks for ``loss``.
    """
    if isinstance(output, torch.Tensor) and isinstance(target, torch.Tensor) and output.ndim >= 2:
        indices = not target.is_floating_point() and target.shape == (output.shape[0], *output.shape[2:])
        shares = target.is_floating_point() and target.shape == output.shape
        if output.is_floating_point() and (indices or shares):
            return F.cross_entropy(output, target.long() if indices else target)
    if target is None:
        raise CalibrationError(
            "gradients need a loss: let calibration yield (input, target), or pass loss=, a function of the output and "
            "the target (None where there is none) that returns the mean over the batch"
        )
    raise CalibrationError(
        f"no loss is known for an output {_shape(output)} and a target {_shape(target)}: pass loss=, a function of "
        "both that returns the mean over the batch"
    )


def _shape(value: Any) -> str:
    return f"of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"of type {type(value).__name__}"
