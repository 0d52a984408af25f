"""The floating type of a proof, and whether memory ran out."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from fxprune.capture.samples import Sample
from fxprune.errors import ProofError, described
from fxprune.util.copies import MADE_TENSOR, deep_copy

# The largest relative error that passes, by dtype.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}

# Copies of all parameters in memory at once, and an estimate of activations in memory per input value.
_COPIES = 3
_ACTIVATIONS = 200
# The usable share of free memory: a process that the system kills for its memory cannot catch any error.
_SHARE = 0.75


def precision(model: nn.Module, sample: Sample) -> torch.dtype:
    """float64, or float32 if float64 copies are estimated not to fit or the device has no float64."""
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
    """Whether ``error`` or one of its causes is a failed allocation."""
    while error is not None:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error):
            return True
        error = error.__cause__
    return False


Module = TypeVar("Module", bound=nn.Module)


def private_copy(module: Module, dtype: torch.dtype) -> Module:
    """A deep copy in eval mode whose floating tensors have type ``dtype``; ties stay tied, the original is only read.

    Constants of the trace keep their type, because the original computes with them in that type at every call. Those
    that repeat one number are exact in every type, so they are converted to ``dtype``. Raises ProofError: the module
    cannot be copied.
    """
    made = {id(t) for name, t in module.named_buffers() if f"_{MADE_TENSOR}" in name and not is_filled(t)}
    try:
        duplicate = deep_copy(module, lambda t: _fresh(t, t.dtype if id(t) in made else dtype))
    except Exception as error:  # deepcopy runs the user's code, which may raise anything
        raise ProofError(
            f"{type(module).__name__} cannot be copied, so nothing can be proven on a copy "
            f"({described(error)}); pass verify=False to go without the proof"
        ) from error
    return duplicate.eval()


def promoted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy without history in the same memory layout: a floating tensor in ``dtype``, a complex one in the matching
    complex type, any other in its own type."""
    tensor = tensor.detach()
    if tensor.is_complex() and not dtype.is_complex:
        dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
    elif not tensor.is_floating_point():
        dtype = tensor.dtype
    return tensor.to(dtype, copy=True, memory_format=torch.preserve_format)


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name; a tied tensor appears under each of its names."""
    named: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    named.update(module.named_buffers(remove_duplicate=False))
    return named


def is_filled(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and bool((tensor == tensor.flatten()[0]).all())


def _fresh(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not (tensor.is_floating_point() or tensor.is_complex()) and tensor.layout is not torch.strided:
        return tensor.detach().clone()
    data = promoted(tensor, dtype)
    return nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data
