"""Output shapes that are known without running the meta kernel, which is slow for some very common ops.

Batch norm and many element-wise ops are Python decompositions on the meta device, and recurrent layers step through
time there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

_SAME_SHAPE = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU),
    *(nn.Dropout, nn.Dropout2d, nn.Identity),
)
_FORWARDS = {cls.forward for cls in _SAME_SHAPE}
_RANKS = {"1d": (2, 3), "2d": (4,), "3d": (5,)}
_SAME_SHAPE_FUNCTIONS = frozenset({"add", "sub", "mul", "relu", "gelu", "silu", "sigmoid", "hardswish"})


def known_result(module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What a leaf module returns, on the meta device, or None where its kernel has to say."""
    if len(args) != 1 or kwargs or not isinstance(args[0], torch.Tensor) or not args[0].is_meta:
        return None
    sequence = args[0]
    if isinstance(module, nn.RNNBase) and sequence.dim() in (2, 3):
        return _recurrent(module, sequence)
    if type(module).forward not in _FORWARDS or not _fits(module, sequence):
        return None
    gives_its_input_back = getattr(module, "inplace", False) or isinstance(module, nn.Identity)
    return sequence if gives_its_input_back else torch.empty_like(sequence)


def known_function_result(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The same for an element-wise function of one tensor, or of two of one shape and dtype."""
    if name not in _SAME_SHAPE_FUNCTIONS or kwargs not in ({}, {"inplace": False}) or not args:
        return None
    first = args[0]
    if not isinstance(first, torch.Tensor) or not first.is_meta or not first.is_floating_point():
        return None
    if len(args) == 2:
        other = args[1]
        if not isinstance(other, torch.Tensor) or other.shape != first.shape or other.dtype != first.dtype:
            return None
    return torch.empty_like(first) if len(args) <= 2 else None


def _fits(module: nn.Module, tensor: torch.Tensor) -> bool:
    """Whether the kernel would accept the input: a wrong one must fail where it always failed."""
    if not isinstance(module, nn.modules.batchnorm._BatchNorm):
        return True
    if type(module).__name__[-2:] not in _RANKS:
        return False
    if module.running_mean is None or tensor.dtype != module.running_mean.dtype:
        return False
    return tensor.dim() in _RANKS[type(module).__name__[-2:]] and tensor.shape[1] == module.num_features


def _recurrent(module: nn.RNNBase, sequence: torch.Tensor) -> tuple[Any, ...] | None:
    """Outputs for a sequence (T, N, F), (N, T, F) or (T, F)."""
    if sequence.shape[-1] != module.input_size:
        return None
    directions = 2 if module.bidirectional else 1
    width = module.proj_size or module.hidden_size
    output = sequence.new_empty(*sequence.shape[:-1], directions * width)
    batch = () if sequence.dim() == 2 else (sequence.shape[0 if module.batch_first else 1],)
    final = sequence.new_empty(directions * module.num_layers, *batch, width)
    if module.mode != "LSTM":
        return output, final
    cell = sequence.new_empty(directions * module.num_layers, *batch, module.hidden_size)
    return output, (final, cell)
