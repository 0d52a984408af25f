"""Expressions in a generated ``model.py`` that make one given tensor, and the packed constants at its end."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import torch

from fxprune.artefacts.values import to_source

__all__ = ["ConstantTable", "literal_source", "zeros_source"]

_LONGEST_LITERAL = 48
_LINE = 100
_UNPACK = '''
def unpack(text: str, stored: torch.dtype, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """A constant from its compressed bytes."""
    data = zlib.decompress(base64.b85decode(text.replace("\\n", "")))
    return torch.frombuffer(bytearray(data), dtype=stored).to(dtype).reshape(shape)
'''


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


class ConstantTable:
    """Writes constants as expressions; those without a short one are packed and defined once, at the file's end."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def expression(self, tensor: torch.Tensor) -> str:
        """An expression that makes exactly this tensor."""
        tensor = tensor.detach().cpu().contiguous()
        short = _short_source(tensor)
        if short is not None:
            return short
        call = _packed_source(tensor)
        return self._names.setdefault(call, f"CONSTANT_{len(self._names) + 1}") + ".clone()"

    def definitions(self) -> str:
        """The source that defines the packed constants; empty where there are none."""
        lines = [f"{name} = {call}\n" for call, name in self._names.items()]
        return "".join(["\n", _UNPACK, "\n\n", *lines]) if lines else ""


def _short_source(tensor: torch.Tensor) -> str | None:
    shape, dtype = tuple(tensor.shape), f"dtype={tensor.dtype}"
    if tensor.numel() == 0:
        return f"torch.zeros({shape}, {dtype})"
    if tensor.numel() <= 16 and len(literal := literal_source(tensor.tolist())) <= _LONGEST_LITERAL:
        return f"torch.tensor({literal}, {dtype})"
    first = tensor.flatten()[0]
    if _same_bits(tensor, first.expand(shape).contiguous()):
        return f"torch.full({shape}, {literal_source(first.item())}, {dtype})"
    if not tensor.is_complex() and tensor.dtype is not torch.bool:
        steps = torch.arange(tensor.numel(), dtype=tensor.dtype)
        if _same_bits(tensor, steps):
            return f"torch.arange({tensor.numel()}, {dtype}).reshape({shape})"
    return None


def _packed_source(tensor: torch.Tensor) -> str:
    stored = _narrowest(tensor)
    text = base64.b85encode(zlib.compress(_bytes(tensor.to(stored)), 9)).decode("ascii")
    # The alphabet of this encoding has neither quotes nor backslashes.
    lines = "\n".join(text[i : i + _LINE] for i in range(0, len(text), _LINE))
    return f'unpack(\n    """\n{lines}\n""",\n    {stored},\n    {tensor.dtype},\n    {tuple(tensor.shape)},\n)'


def _narrowest(tensor: torch.Tensor) -> torch.dtype:
    """The smallest integer dtype that holds an index table, as tables of positions are long and their values small."""
    if tensor.dtype not in (torch.int64, torch.int32):
        return tensor.dtype
    low, high = int(tensor.min()), int(tensor.max())
    fitting = (d for d in (torch.uint8, torch.int16) if torch.iinfo(d).min <= low and high <= torch.iinfo(d).max)
    return next(fitting, tensor.dtype)


def _bytes(tensor: torch.Tensor) -> bytes:
    data: bytes = tensor.flatten().view(torch.uint8).numpy().tobytes()
    return data


def _same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    # Bits and not values: zero equals minus zero, and no NaN equals itself.
    return torch.equal(left.flatten().view(torch.uint8), right.flatten().view(torch.uint8))
