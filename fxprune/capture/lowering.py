"""Modules that are written out before they are recorded, so that what they do inside can be pruned."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def is_lowered(module: nn.Module) -> bool:
    """Whether the module is written out by :func:`multi_head_attention`."""
    return type(module).forward is nn.MultiheadAttention.forward


def multi_head_attention(
    module: nn.MultiheadAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_padding_mask: torch.Tensor | None = None,
    need_weights: bool = True,
    attn_mask: torch.Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``nn.MultiheadAttention`` as projections, reshapes and attention: (L, N, E), (N, L, E) or (L, E) inputs."""
    unbatched = query.dim() == 2
    swapped = not module.batch_first and not unbatched
    if unbatched:
        query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
    elif swapped:
        query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
    q, k, v = _projections(module, query, key, value)
    heads = module.num_heads
    mask = _merged_mask(attn_mask, key_padding_mask, query, heads)
    k, v, mask = _extended(module, k, v, mask)
    q, k, v = (_split_heads(t, heads) for t in (q, k, v))
    dropout = module.dropout if module.training else 0.0
    weights: torch.Tensor | None = None
    if need_weights:
        scores = (q * (1.0 / math.sqrt(module.head_dim))) @ k.transpose(-2, -1)
        weights = F.softmax(scores if mask is None else scores + mask, dim=-1)
        weights = F.dropout(weights, dropout) if dropout else weights
        mixed = weights @ v
        weights = weights.mean(dim=1) if average_attn_weights else weights
        weights = weights.squeeze(0) if unbatched else weights
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    output = F.linear(mixed.transpose(1, 2).flatten(2), module.out_proj.weight, module.out_proj.bias)
    if unbatched:
        return output.squeeze(0), weights
    if swapped or module.training:
        # Steps first in memory, as torch has it: dropout behind it draws its numbers in the order of the memory.
        steps_first = output.transpose(0, 1).contiguous()
        return (steps_first if swapped else steps_first.transpose(0, 1)), weights
    return output, weights


def _projections(module: nn.MultiheadAttention, *inputs: torch.Tensor) -> list[torch.Tensor]:
    if module._qkv_same_embed_dim:
        if all(t is inputs[0] for t in inputs):
            return list(F.linear(inputs[0], module.in_proj_weight, module.in_proj_bias).chunk(3, dim=-1))
        weights = module.in_proj_weight.chunk(3)
    else:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    biases: Any = [None] * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    return [F.linear(t, w, b) for t, w, b in zip(inputs, weights, biases, strict=True)]


def _extended(
    module: nn.MultiheadAttention, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Keys and values with the learnt one and the zero one that the module may add; every query may see them."""
    added = 0
    if module.bias_k is not None and module.bias_v is not None:
        k, v = (
            torch.cat((t, b.expand(t.shape[0], -1, -1)), dim=1) for t, b in ((k, module.bias_k), (v, module.bias_v))
        )
        added += 1
    if module.add_zero_attn:
        k, v = (torch.cat((t, torch.zeros_like(t[:, :1])), dim=1) for t in (k, v))
        added += 1
    return k, v, F.pad(mask, (0, added)) if mask is not None and added else mask


def _split_heads(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    return torch.unflatten(tensor, -1, (heads, -1)).transpose(1, 2)


def _merged_mask(
    attn_mask: torch.Tensor | None, padding: torch.Tensor | None, query: torch.Tensor, heads: int
) -> torch.Tensor | None:
    mask = None if attn_mask is None else _additive(attn_mask, query)
    if mask is not None and mask.dim() == 3:
        mask = torch.unflatten(mask, 0, (-1, heads))
    if padding is not None:
        extra = _additive(padding, query)[:, None, None, :]
        mask = extra if mask is None else mask + extra
    return mask


def _additive(mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
