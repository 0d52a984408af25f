"""Expressions in a generated ``model.py`` that make one given tensor."""

from __future__ import annotations

from typing import Any

import torch

from fxprune.artefacts.values import to_source

__all__ = ["constant_source", "literal_source", "zeros_source"]


_LONGEST_LITERAL = 48
_HEX_DIGITS = 96


def literal_source(value: Any) -> str:
    """Python source of a value that holds no node."""

    def refuse(node: Any) -> str:
        raise AssertionError(f"{node} inside a plain value")

    return to_source(value, refuse)


def zeros_source(tensor: torch.Tensor) -> str:
    """Zeros of the tensor's shape and dtype, to be filled from the state dict."""
    dtype = "" if tensor.dtype is torch.float32 else f", dtype={tensor.dtype}"
    sizes = ", ".join(map(str, tensor.shape)) or "()"
    return f"torch.zeros({sizes}{dtype})"


def constant_source(tensor: torch.Tensor) -> str:
    """An expression that makes exactly this tensor, short where its values have a pattern."""
    tensor = tensor.detach().cpu().contiguous()
    shape, dtype = tuple(tensor.shape), f"dtype={tensor.dtype}"
    if tensor.numel() == 0:
        return f"torch.zeros({shape}, {dtype})"
    if tensor.numel() <= 16 and len(literal := literal_source(tensor.tolist())) <= _LONGEST_LITERAL:
        return f"torch.tensor({literal}, {dtype})"
    first = tensor.flatten()[0]
    if bool((tensor == first).all()):
        return f"torch.full({shape}, {literal_source(first.item())}, {dtype})"
    count = tensor.numel()
    if not tensor.is_complex() and tensor.dtype is not torch.bool:
        steps = torch.arange(count, dtype=tensor.dtype)
        if torch.equal(tensor.flatten(), steps):
            return f"torch.arange({count}, {dtype}).reshape({shape})"
    # Exact for every dtype and compact; frombuffer reads the bytes as they lie in memory.
    digits = tensor.flatten().view(torch.uint8).numpy().tobytes().hex()
    lines = [f'    "{digits[i : i + _HEX_DIGITS]}"' for i in range(0, len(digits), _HEX_DIGITS)]
    data = "\n".join(["bytearray.fromhex(", *lines, ")"])
    return f"torch.frombuffer({data}, {dtype}).reshape({shape})"
