"""Attention: the fused product, nn.MultiheadAttention in all its forms, and hand-written heads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.rules.cases import TOKENS, Case, Sample
from tests.rules.oracles import Kept

WIDTH, HEADS = 8, 2


class Attention(nn.Module):
    """nn.MultiheadAttention between two linear layers; ``call`` says how it is called."""

    def __init__(self, call: Callable[[Any, Tensor, Tensor], Tensor], **options: Any) -> None:
        super().__init__()
        self.call = call
        self.first, self.other = nn.Linear(5, WIDTH), nn.Linear(5, options.get("kdim") or WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, **options)
        self.last = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.call(self.attention, self.first(x), self.other(x)))


def _self(module: Any, h: Tensor, other: Tensor) -> Tensor:
    return h + module(h, h, h)[0] + other


def _unweighted(module: Any, h: Tensor, other: Tensor) -> Tensor:
    return h + module(h, h, h, need_weights=False)[0] + other


def _weights(module: Any, h: Tensor, other: Tensor) -> Tensor:
    mixed, weights = module(h, h, h, average_attn_weights=False)
    return mixed + weights[:, 0] @ h + other


def _cross(module: Any, h: Tensor, other: Tensor) -> Tensor:
    return module(h, other, other, need_weights=False)[0]


def _masked(module: Any, h: Tensor, other: Tensor) -> Tensor:
    mask = torch.ones(h.shape[1], h.shape[1], dtype=torch.bool).triu(1)
    return module(h, h, h, attn_mask=mask)[0] + other


def _float_masked(module: Any, h: Tensor, other: Tensor) -> Tensor:
    mask = torch.linspace(0, 1, h.shape[1] ** 2, dtype=h.dtype).view(h.shape[1], -1)
    return module(h, other, h + other, attn_mask=mask, need_weights=False)[0]


def _padded(module: Any, h: Tensor, other: Tensor) -> Tensor:
    padding = torch.zeros(h.shape[0], h.shape[1], dtype=torch.bool)
    padding[:, -2:] = True
    return module(h, h, h, key_padding_mask=padding)[0] + other


class Heads(nn.Module):
    """Separate query, key and value projections and an attention function."""

    def __init__(
        self, attend: Callable[[Tensor, Tensor, Tensor], Tensor], groups: int = HEADS, heads: int = HEADS
    ) -> None:
        super().__init__()
        self.attend, self.heads, self.groups = attend, heads, groups
        self.query, self.key, self.value = nn.Linear(5, heads * 4), nn.Linear(5, groups * 4), nn.Linear(5, groups * 6)
        self.last = nn.Linear(heads * 6, 4)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.query(x).view(batch, length, self.heads, -1).transpose(1, 2)
        k = self.key(x).view(batch, length, self.groups, 4).transpose(1, 2)
        v = self.value(x).reshape(batch, length, self.groups, 6).permute(0, 2, 1, 3)
        return self.last(self.attend(q, k, v).transpose(1, 2).reshape(batch, length, -1))


class Packed(nn.Module):
    """One projection for query, key and value, taken apart by an unbind, as vision transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.qkv, self.last = nn.Linear(5, 8), nn.Linear(8, 24), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(self.first(x)).reshape(batch, length, 3, HEADS, 4).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return self.last((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, -1))


class Indexed(Packed):
    """The same, taken apart by numbers, with a fused product."""

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(self.first(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=True)
        return self.last(mixed.transpose(1, 2).flatten(2))


class Chunked(Packed):
    """The same, cut by a chunk before the heads are made."""

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape[0], x.shape[1], 8
        q, k, v = (
            t.view(batch, length, HEADS, width // HEADS).transpose(1, 2) for t in self.qkv(self.first(x)).chunk(3, -1)
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(width // HEADS)
        return self.last((F.softmax(scores, -1) @ v).transpose(1, 2).contiguous().view(batch, length, width))


class BetweenChannels(nn.Module):
    """Cross-covariance attention: the softmax runs over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.value, self.last = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        q = self.first(x).transpose(1, 2)
        weights = (q @ q.transpose(1, 2)).softmax(-1)
        return self.last((weights @ self.value(x).transpose(1, 2)).transpose(1, 2))


def _between_channels(net: Any, kept: Kept, args: tuple[Any, ...]) -> Tensor:
    channels = kept("first.weight")
    q = net.first(*args).transpose(1, 2)[:, channels]
    mixed = (q @ q.transpose(1, 2)).softmax(-1) @ net.value(*args).transpose(1, 2)[:, channels]
    return F.linear(mixed.transpose(1, 2), net.last.weight[:, channels], net.last.bias)


class Encoder(nn.Module):
    """A torch encoder layer; an odd number of heads keeps torch off its fused path."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.first = nn.Linear(5, 9)
        self.layer = nn.TransformerEncoderLayer(9, 3, 12, batch_first=True, **options)
        self.last = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(self.first(x)))


class Flat(nn.LayerNorm):
    """Stands where a norm was and does nothing."""

    def forward(self, h: Tensor) -> Tensor:  # type: ignore[override]
        return h


class EncoderWithoutNorm(Encoder):
    """The layer's wiring alone, so that zeros are the right stand-in."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.layer.norm1, self.layer.norm2 = Flat(9), Flat(9)


def _attention(
    name: str, call: Any, sample: Sample = TOKENS.sample, free: str = "first.weight", **options: Any
) -> Case:
    names = tuple(free.split())
    return Case(f"attention/{name}", lambda: Attention(call, **options), sample, names)


def _sequence_first(batch: int) -> tuple[Tensor]:
    return (torch.randn(7, batch, 5),)


_UNMASKED = "first.weight attention.in_proj_weight attention.in_proj_weight:1 attention.out_proj.weight"
_MIXED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "fused": F.scaled_dot_product_attention,
    "fused with a scale": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.7),
    "fused causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "fused with a mask": lambda q, k, v: F.scaled_dot_product_attention(
        q, k, v, attn_mask=torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
    ),
    "by hand": lambda q, k, v: (q @ k.mT * k.shape[-1] ** -0.5).softmax(-1) @ v,
    "divided": lambda q, k, v: F.softmax(q @ k.transpose(-1, -2) / q.size(-1) ** 0.5, dim=-1) @ v,
    "linear": lambda q, k, v: q @ (k.transpose(-1, -2) @ v) / q.shape[-1],
}

CASES = [
    _attention("module", _self, free=_UNMASKED, batch_first=True),
    _attention("module without weights", _unweighted, free=_UNMASKED, batch_first=True),
    _attention("module without bias", _self, free=_UNMASKED, batch_first=True, bias=False),
    _attention("module with weights of each head", _weights, free=_UNMASKED, batch_first=True),
    _attention("module, sequence first", _self, _sequence_first, free=_UNMASKED),
    _attention("module, unbatched", _self, lambda n: (torch.randn(7, 5),), free=_UNMASKED),
    _attention(
        "module across two inputs", _cross, free="first.weight other.weight attention.in_proj_weight", batch_first=True
    ),
    _attention(
        "module with kdim and vdim",
        _cross,
        free="first.weight other.weight attention.q_proj_weight attention.k_proj_weight attention.v_proj_weight",
        batch_first=True,
        kdim=6,
        vdim=6,
    ),
    _attention("module with learnt keys", _masked, free=_UNMASKED, batch_first=True, add_bias_kv=True),
    _attention("module with zero keys", _padded, free=_UNMASKED, batch_first=True, add_zero_attn=True),
    _attention("module with both", _unweighted, free=_UNMASKED, batch_first=True, add_zero_attn=True, add_bias_kv=True),
    _attention("module with a causal mask", _masked, free=_UNMASKED, batch_first=True),
    _attention("module with a float mask", _float_masked, free=_UNMASKED, batch_first=True),
    _attention("module with padding", _padded, free=_UNMASKED, batch_first=True),
    *(
        Case(
            f"attention/{n}",
            lambda op=op: Heads(op),
            TOKENS.sample,
            ("query.weight", "key.weight", "value.weight"),
            resized=TOKENS.resized,
        )
        for n, op in _MIXED.items()
    ),
    Case(
        "attention/grouped queries",
        lambda: Heads(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), 2, 6),
        TOKENS.sample,
        ("query.weight", "key.weight", "value.weight"),
    ),
    Case(
        "attention/two queries to each of two keys",
        lambda: Heads(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), 2, 4),
        TOKENS.sample,
        ("query.weight", "key.weight", "value.weight"),
    ),
    Case(
        "attention/grouped queries repeated",
        lambda: Heads(
            lambda q, k, v: F.scaled_dot_product_attention(q, k.repeat_interleave(3, 1), v.repeat_interleave(3, dim=1)),
            2,
            6,
        ),
        TOKENS.sample,
        ("query.weight", "key.weight", "value.weight"),
    ),
    Case(
        "attention/grouped queries expanded",
        lambda: Heads(
            lambda q, k, v: F.scaled_dot_product_attention(
                q, *(t[:, :, None].expand(-1, -1, 3, -1, -1).flatten(1, 2) for t in (k, v))
            ),
            2,
            6,
        ),
        TOKENS.sample,
        ("query.weight", "key.weight", "value.weight"),
    ),
    *(
        Case(
            f"attention/{cls.__name__.lower()}",
            cls,
            TOKENS.sample,
            ("first.weight", "qkv.weight"),
            resized=TOKENS.resized,
        )
        for cls in (Packed, Indexed, Chunked)
    ),
    Case(
        "attention/between channels",
        BetweenChannels,
        TOKENS.sample,
        ("first.weight", "value.weight"),
        _between_channels,
    ),
    Case(
        "attention/encoder layer wiring",
        EncoderWithoutNorm,
        TOKENS.sample,
        ("first.weight", "layer.linear1.weight", "layer.self_attn.in_proj_weight"),
    ),
    Case(
        "attention/encoder layer wiring, gelu",
        lambda: EncoderWithoutNorm(activation="gelu", norm_first=True),
        TOKENS.sample,
        ("first.weight", "layer.linear1.weight", "layer.self_attn.in_proj_weight"),
    ),
]
