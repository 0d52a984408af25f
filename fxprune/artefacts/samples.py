"""The shapes and dtypes of the sample that a network was compiled with, as JSON data."""

from __future__ import annotations

from typing import Any

import torch

from fxprune.artefacts.values import decode, encode
from fxprune.errors import ArtefactError
from fxprune.samples import Sample

__all__ = ["decode_sample", "encode_sample"]

_MOST_DIMS = 64


def encode_sample(sample: Sample | None) -> Any:
    """Shape and dtype of every tensor, and every other value that can be written; None where there is no sample."""
    if sample is None:
        return None
    data = {"args": [_encode(value) for value in sample.args], "kwargs": _encode_items(sample.kwargs)}
    return data | ({"others": [encode_sample(other) for other in sample.others]} if sample.others else {})


def _encode(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return {"tensor": [list(value.shape), encode(value.dtype)]}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if type(value) is tuple:
        return {"tuple": [_encode(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), _encode(item)] for key, item in value.items()]}
    return encode(value)


def _encode_items(values: dict[str, Any]) -> dict[str, Any]:
    return {key: _encode(value) for key, value in values.items()}


def decode_sample(data: Any) -> Sample | None:
    """The sample that :func:`encode_sample` wrote, its tensors on the meta device."""
    if data is None:
        return None
    return Sample(*_call(data), tuple(Sample(*_call(other)) for other in data.get("others", ())))


def _call(data: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(_decode(v) for v in data["args"]), {k: _decode(v) for k, v in data["kwargs"].items()}


def _decode(data: Any) -> Any:
    if isinstance(data, list):
        return [_decode(item) for item in data]
    if isinstance(data, dict) and len(data) == 1:
        ((kind, content),) = data.items()
        if kind == "tensor":
            return _meta_tensor(*content)
        if kind == "tuple":
            return tuple(_decode(item) for item in content)
        if kind == "dict":
            return {decode(key, {}): _decode(value) for key, value in content}
    return decode(data, {})


def _meta_tensor(shape: Any, dtype: Any) -> torch.Tensor:
    sizes = shape if isinstance(shape, list) and len(shape) <= _MOST_DIMS else [None]
    if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in sizes):
        raise ArtefactError(f"the sample has a tensor of shape {shape!r:.80}")
    return torch.empty(shape, dtype=decode(dtype, {}), device="meta")
