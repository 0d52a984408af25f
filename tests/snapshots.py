"""Everything about a model and the process that a pass must leave as it found it."""

from __future__ import annotations

import gc
import random
import warnings
from typing import Any

import numpy as np
import torch
import torch._dynamo  # torch imports it, and sympy with a filter of warnings, with the first op on the meta device
from torch import nn
from torch.nn.parameter import is_lazy

Facts = dict[str, Any]


def snapshot(model: nn.Module) -> Facts:
    """All that can be observed of a model: tensors with their storage, modes, hooks, attributes."""
    facts: Facts = {}
    for path, module in model.named_modules(remove_duplicate=False):
        facts[f"{path}: module"] = (id(module), type(module), module.training)
        for name, value in vars(module).items():
            if name not in ("_modules", "_parameters", "_buffers"):
                facts[f"{path}: {name}"] = repr(value)
        for name, value in (*module._parameters.items(), *module._buffers.items()):
            facts[f"{path}.{name}"] = None if value is None else _tensor_facts(value)
    return facts


def _tensor_facts(tensor: torch.Tensor) -> tuple[Any, ...]:
    if is_lazy(tensor):
        return (id(tensor), type(tensor))
    return (
        id(tensor),
        type(tensor),
        tensor.data_ptr(),
        tensor.dtype,
        tensor.device,
        tuple(tensor.shape),
        tensor.stride(),
        tensor.requires_grad,
        None if tensor.is_inference() else tensor._version,
        repr(tensor._backward_hooks),
        _values(tensor),
        None if tensor.grad is None else (id(tensor.grad), _values(tensor.grad)),
    )


def _values(tensor: torch.Tensor) -> bytes:
    """The bits, so that NaN equals NaN and 0.0 differs from -0.0."""
    if tensor.is_meta:
        return b""
    plain = tensor.dequantize() if tensor.is_quantized else tensor.detach()
    return plain.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def process() -> Facts:
    """Settings and random generators of the process."""
    return {
        "torch random numbers": torch.random.get_rng_state().numpy().tobytes(),
        "numpy random numbers": repr(np.random.get_state()),
        "python random numbers": random.getstate(),
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "garbage collection": gc.isenabled(),
        "autocast": [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")],
        "warnings": warnings.filters[:],
        "function modes": torch._C._len_torch_function_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "attention fast path": torch.backends.mha.get_fastpath_enabled(),
        "onednn": torch.backends.mkldnn.enabled,
        "flash attention": torch.backends.cuda.flash_sdp_enabled(),
        "math attention": torch.backends.cuda.math_sdp_enabled(),
        "module call": nn.Module.__call__,
        "module getattr": nn.Module.__getattr__,
        "modes": torch.overrides._get_current_function_mode_stack(),
    }


def storages(model: nn.Module) -> set[int]:
    """Addresses of all storages of parameters, buffers and plain tensor attributes; empty ones have none."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [v for m in model.modules() for v in vars(m).values() if isinstance(v, torch.Tensor)]
    return {t.untyped_storage().data_ptr() for t in tensors} - {0}
