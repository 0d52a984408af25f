"""Norms whose statistics are taken over the entries that are left."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .calls import Call, Handler, bury, constant_along, filled, gone, trailing, words

__all__ = ["NORMALIZATIONS"]


def _moments(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over ``dims``, kept as size 1, of the entries that are left."""
    removed = gone(x)
    kept = (~removed).sum(dim=dims, keepdim=True).to(x.dtype)
    values = filled(x)
    mean = values.sum(dim=dims, keepdim=True) / kept
    variance = (values - mean).masked_fill(removed, 0).square().sum(dim=dims, keepdim=True) / kept
    return mean, variance


def _layer_norm(call: Call) -> Any:
    x = call["input"]
    mean, variance = _moments(x, trailing(x, len(call["normalized_shape"])))
    scale = torch.rsqrt(variance + call["eps"])
    return _affine((x - mean) * scale, call.get("weight"), call.get("bias")), mean, scale


def _rms_norm(call: Call) -> Any:
    x = call["input"]
    removed = gone(x)
    dims = trailing(x, len(call["normalized_shape"]))
    kept = (~removed).sum(dim=dims, keepdim=True).to(x.dtype)
    square = filled(x).square().sum(dim=dims, keepdim=True) / kept
    scale = torch.rsqrt(square + call.get("eps", torch.finfo(x.dtype).eps))
    return _affine(x * scale, call.get("weight"), None), scale


def _group_norm(call: Call) -> Any:
    x = call["input"]
    grouped = x.reshape(x.shape[0], call["group"], -1)
    mean, variance = _moments(grouped, (2,))
    scale = torch.rsqrt(variance + call["eps"])
    shape = [1, x.shape[1], *[1] * (x.ndim - 2)]
    weight, bias = (None if v is None else v.reshape(shape) for v in (call.get("weight"), call.get("bias")))
    return _affine(((grouped - mean) * scale).reshape(x.shape), weight, bias), mean[..., 0], scale[..., 0]


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _batch_norm(call: Call) -> Any:
    """Per channel, hence right by itself, except where statistics of what it is given run over removed positions.

    That is how weights are standardised: each row of a weight is a channel, with its inputs as positions.
    """
    x = call["input"]
    by_batch = bool(call.get("training", False)) or call.get("running_mean") is None
    dims = (0, *range(2, x.ndim))
    if not by_batch or constant_along(gone(x), dims):
        return call.run()
    if call.get("running_mean") is not None:
        raise call.fault("would put statistics over removed positions into the running ones")
    mean, variance = _moments(x, dims)
    scale = torch.rsqrt(variance + call.get("eps", call.get("epsilon")))
    weight, bias = (None if v is None else v.reshape(mean.shape) for v in (call.get("weight"), call.get("bias")))
    more = [x.new_empty(0)] * (len(call.func._schema.returns) - 3)
    return _affine((x - mean) * scale, weight, bias), mean.flatten(), scale.flatten(), *more


def _weight_norm(call: Call) -> Any:
    """``v * (g / norm(v))``, the norm over every dim of ``v`` but ``dim``."""
    v, g, dim = call["v"], call["g"], call.get("dim", 0)
    removed = gone(v)
    dims = tuple(d for d in range(v.ndim) if d != dim % v.ndim)
    length = torch.linalg.vector_norm(filled(v), 2, dim=dims, keepdim=True)
    return v * (g / length), bury(length, removed.all(dim=dims, keepdim=True))


NORMALIZATIONS: dict[str, Handler] = {
    "native_layer_norm": _layer_norm,
    "_fused_rms_norm": _rms_norm,
    "native_group_norm": _group_norm,
    **dict.fromkeys(
        words(
            """native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_no_update
            cudnn_batch_norm miopen_batch_norm"""
        ),
        _batch_norm,
    ),
    "_weight_norm_interface": _weight_norm,
}
