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
_SAME_SHAPE_FUNCTIONS = frozenset(
    {"add", "sub", "mul", "div", "relu", "gelu", "silu", "sigmoid", "hardswish", "tanh", "exp", "sqrt", "rsqrt"}
)


def known_result(module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What a leaf module returns, on the meta device, or None where its kernel has to say."""
    if len(args) != 1 or kwargs or not isinstance(args[0], torch.Tensor) or not args[0].is_meta:
        return None
    sequence = args[0]
    if isinstance(module, nn.RNNBase) and sequence.dim() in (2, 3):
        return _recurrent(module, sequence)
    if type(module).forward is nn.Linear.forward:
        return _linear(module, sequence)
    if type(module).forward is nn.LayerNorm.forward:
        return _layer_norm(sequence, module.normalized_shape, module.weight)
    if type(module).forward not in _FORWARDS or not _fits(module, sequence):
        return None
    gives_its_input_back = getattr(module, "inplace", False) or isinstance(module, nn.Identity)
    return sequence if gives_its_input_back else torch.empty_like(sequence)


def known_function_result(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The same for some functions of a floating tensor: element-wise ones, softmax, layer norm and attention."""
    if not args or not isinstance(args[0], torch.Tensor) or not args[0].is_meta or not args[0].is_floating_point():
        return None
    if name in _SAME_SHAPE_FUNCTIONS and kwargs in ({}, {"inplace": False}) and len(args) <= 2:
        return torch.empty_like(args[0]) if len(args) == 1 else _combined(args[0], args[1])
    if name == "softmax":
        return _softmax(args[0], *args[1:], **kwargs)
    if name == "layer_norm":
        return _layer_norm(args[0], *args[1:], **kwargs)
    if name == "scaled_dot_product_attention" and len(args) == 3 and kwargs.keys() <= {"dropout_p"}:
        return _attention(*args)
    return None


def _combined(first: torch.Tensor, other: Any) -> torch.Tensor | None:
    """A tensor with a real number, or with a tensor that broadcasts to its shape or the other way round."""
    if isinstance(other, (int, float)):
        return torch.empty_like(first)
    if not isinstance(other, torch.Tensor) or not other.is_meta or other.dtype != first.dtype:
        return None
    try:
        shape = torch.broadcast_shapes(first.shape, other.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return None
    # Where neither operand has the shape of the result, its strides are for the kernel to say.
    return next((torch.empty_like(t) for t in (first, other) if t.shape == shape), None)


def _softmax(x: torch.Tensor, dim: Any = None, *rest: Any, **others: Any) -> torch.Tensor | None:
    known = isinstance(dim, int) and -x.dim() <= dim < x.dim() and not rest and not others
    return torch.empty_like(x) if known else None


def _layer_norm(x: torch.Tensor, shape: Any = (), *affine: Any, **others: Any) -> torch.Tensor | None:
    """The kernel's result is contiguous whatever the strides of its input."""
    shape = tuple(shape) if isinstance(shape, (list, tuple)) else ()
    tensors = [t for t in (*affine, *others.values()) if isinstance(t, torch.Tensor)]
    if not shape or tuple(x.shape[-len(shape) :]) != shape:
        return None
    if any(tuple(t.shape) != shape or t.dtype != x.dtype for t in tensors):
        return None
    return x.new_empty(x.shape)


def _attention(query: torch.Tensor, key: Any, value: Any) -> torch.Tensor | None:
    if not (isinstance(key, torch.Tensor) and isinstance(value, torch.Tensor) and key.is_meta and value.is_meta):
        return None
    if not (query.dim() == key.dim() == value.dim() and query.dtype == key.dtype == value.dtype):
        return None
    if query.shape[:-2] != key.shape[:-2] or query.shape[-1] != key.shape[-1] or key.shape[:-1] != value.shape[:-1]:
        return None
    return query.new_empty(*query.shape[:-1], value.shape[-1])


def _fits(module: nn.Module, tensor: torch.Tensor) -> bool:
    """Whether the kernel would accept the input: a wrong one must fail where it always failed."""
    if not isinstance(module, nn.modules.batchnorm._BatchNorm):
        return True
    if type(module).__name__[-2:] not in _RANKS:
        return False
    if module.running_mean is None or tensor.dtype != module.running_mean.dtype:
        return False
    return tensor.dim() in _RANKS[type(module).__name__[-2:]] and tensor.shape[1] == module.num_features


def _linear(module: Any, x: torch.Tensor) -> torch.Tensor | None:
    if x.dim() == 0 or x.shape[-1] != module.in_features or x.dtype != module.weight.dtype:
        return None
    return x.new_empty(*x.shape[:-1], module.weight.shape[0])


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
