"""The floating type of a proof, and whether memory ran out."""

from __future__ import annotations

import torch
from torch import nn

from fxprune.samples import Sample

from .copies import named_tensors

__all__ = ["TOLERANCE", "out_of_memory", "precision"]

# Largest relative error that passes.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}

# Copies of all parameters that are alive at once, and a guess of activations alive per input value.
_COPIES = 3
_ACTIVATIONS = 200
# How much of the free memory may be needed: a process that the system kills for its memory has nothing to catch.
_SHARE = 0.75


def precision(model: nn.Module, sample: Sample) -> torch.dtype:
    """float64, or float32 where an estimate says that float64 copies do not fit, or the device has no float64."""
    tensors = list(named_tensors(model).values())
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))
    if device.type == "mps":
        return torch.float32
    if any(tensor.dtype == torch.float64 for tensor in tensors):
        return torch.float64
    distinct = {id(tensor): tensor.numel() for tensor in tensors}
    rows = 3 / max(sample.batch_size or 3, 1)
    inputs = sum(tensor.numel() for tensor in sample.tensors) * rows
    needed = 8 * (_COPIES * sum(distinct.values()) + _ACTIVATIONS * inputs)
    return torch.float64 if needed < _SHARE * _available(device) else torch.float32


def _available(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            found = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    except OSError:
        return float("inf")
    return float(found[0] * 1024) if found else float("inf")


def out_of_memory(error: BaseException | None) -> bool:
    """Whether ``error``, or what it came from, is a failed allocation."""
    while error is not None:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error):
            return True
        error = error.__cause__
    return False
