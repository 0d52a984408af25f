"""Output shapes of recurrent layers: their meta kernels step through time, so a formula is used instead."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def has_shape_formula(module: nn.Module, args: tuple[Any, ...]) -> bool:
    """Whether :func:`shapes_of` knows the module and the form of its input."""
    return (
        isinstance(module, nn.RNNBase) and isinstance(next(iter(args), None), torch.Tensor) and args[0].dim() in (2, 3)
    )


def shapes_of(module: nn.Module, sequence: torch.Tensor) -> tuple[Any, ...]:
    """What the module returns for a sequence (T, N, F), (N, T, F) or (T, F), on the meta device."""
    assert isinstance(module, nn.RNNBase)
    directions = 2 if module.bidirectional else 1
    width = module.proj_size or module.hidden_size
    output = sequence.new_empty(*sequence.shape[:-1], directions * width)
    batch = () if sequence.dim() == 2 else (sequence.shape[0 if module.batch_first else 1],)
    final = sequence.new_empty(directions * module.num_layers, *batch, width)
    if module.mode != "LSTM":
        return output, final
    cell = sequence.new_empty(directions * module.num_layers, *batch, module.hidden_size)
    return output, (final, cell)
