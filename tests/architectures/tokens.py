"""Attention in its many forms, written out: heads, key-value groups and head_dim are found from the reshapes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.architectures.architecture import Architecture

_WORDS = 13
_SCALE = 0.5


def _image(batch: int) -> Tensor:
    return torch.randn(batch, 3, 8, 8)


def _words(batch: int) -> Tensor:
    return torch.randint(0, _WORDS, (batch, 6))


def _more_words(batch: int) -> Tensor:
    return torch.randint(0, _WORDS, (batch, 9))


class VisionTransformer(nn.Module):
    """Patches, a class token, position embeddings, one pre-norm block, the class token read out."""

    def __init__(self, hidden: int, heads: int, key: int, value: int, mlp: int) -> None:
        super().__init__()
        self.heads, self.key, self.value = heads, key, value
        self.patches = nn.Conv2d(3, hidden, 4, 4)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, hidden)), nn.Parameter(torch.randn(1, 5, hidden))
        self.norm, self.out = nn.LayerNorm(hidden), nn.Linear(heads * value, hidden)
        self.q, self.k = nn.Linear(hidden, heads * key), nn.Linear(hidden, heads * key)
        self.v = nn.Linear(hidden, heads * value)
        self.mlp = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, mlp), nn.GELU(), nn.Linear(mlp, hidden))
        self.head = nn.Linear(hidden, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.token.expand(x.shape[0], -1, -1), h], 1) + self.places
        n = self.norm(h)
        q, k = (layer(n).unflatten(-1, (self.heads, self.key)).transpose(1, 2) for layer in (self.q, self.k))
        v = self.v(n).unflatten(-1, (self.heads, self.value)).transpose(1, 2)
        mixed = ((q @ k.transpose(-2, -1)) * _SCALE).softmax(-1) @ v
        h = h + self.out(mixed.transpose(1, 2).flatten(2))
        return self.head((h + self.mlp(h))[:, 0])


class Windows(nn.Module):
    """Windows of 4 x 4 with a table of relative position biases, shifted by rolling, one packed projection."""

    def __init__(self, hidden: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.patches, self.qkv = nn.Conv2d(3, hidden, 1), nn.Linear(hidden, 3 * heads * width)
        self.table, self.out = nn.Parameter(torch.randn(49, heads)), nn.Linear(heads * width, hidden)
        place = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        apart = (place[:, :, None] - place[:, None] + 3).permute(1, 2, 0)
        self.register_buffer("apart", apart[..., 0] * 7 + apart[..., 1])
        self.head = nn.Conv2d(hidden, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x)
        b, c, height, width = h.shape
        rolled = torch.roll(h.permute(0, 2, 3, 1), (-2, -2), (1, 2))
        windows = rolled.view(b, height // 4, 4, width // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        qkv = self.qkv(windows).view(-1, 16, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        bias = self.table[self.apart.view(-1)].view(16, 16, self.heads).permute(2, 0, 1)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], attn_mask=bias[None], scale=_SCALE)
        mixed = self.out(mixed.transpose(1, 2).reshape(-1, 16, self.heads * self.width))
        mixed = mixed.view(b, height // 4, width // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(b, height, width, c)
        return self.head(h + torch.roll(mixed, (2, 2), (1, 2)).permute(0, 3, 1, 2))


class GroupedQueries(nn.Module):
    """A decoder: RMS norm by hand, rotary positions, fewer keys than queries, a gated MLP, a tied head."""

    def __init__(self, hidden: int, groups: int, per_group: int, pairs: int, value: int, mlp: int) -> None:
        super().__init__()
        self.groups, self.per_group, self.pairs, self.value_width = groups, per_group, pairs, value
        self.table, self.gain = nn.Embedding(_WORDS, hidden), nn.Parameter(torch.ones(hidden))
        self.q = nn.Linear(hidden, groups * per_group * 2 * pairs, bias=False)
        self.k, self.v = nn.Linear(hidden, groups * 2 * pairs), nn.Linear(hidden, groups * value)
        self.out = nn.Linear(groups * per_group * value, hidden)
        self.gate, self.up, self.down = nn.Linear(hidden, mlp), nn.Linear(hidden, mlp), nn.Linear(mlp, hidden)
        self.register_buffer("rates", torch.linspace(1.0, 0.1, pairs))
        self.head = nn.Linear(hidden, _WORDS, bias=False)
        self.head.weight = self.table.weight

    def rotated(self, t: Tensor) -> Tensor:
        angle = torch.arange(t.shape[2])[:, None] * torch.cat([self.rates, self.rates])
        left, right = t.chunk(2, -1)
        return t * angle.cos() + torch.cat([-right, left], -1) * angle.sin()

    def forward(self, words: Tensor) -> Tensor:
        h = self.table(words)
        b, n, _ = h.shape
        normed = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain
        q = self.q(normed).view(b, n, self.groups * self.per_group, -1).transpose(1, 2)
        k = self.k(normed).view(b, n, self.groups, -1).transpose(1, 2)
        v = self.v(normed).view(b, n, self.groups, -1).transpose(1, 2)
        q, k = self.rotated(q), self.rotated(k)
        k, v = (t[:, :, None].expand(-1, -1, self.per_group, -1, -1).flatten(1, 2) for t in (k, v))
        scores = q @ k.transpose(2, 3) * _SCALE + torch.full((n, n), -1e4).triu(1)
        h = h + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1))
        return self.head(h + self.down(F.silu(self.gate(h)) * self.up(h)))


class EncoderDecoder(nn.Module):
    """Biases by bucketed distance, looked up per head; the decoder's layer attends to the encoder's."""

    def __init__(self, hidden: int, heads: int, key: int, value: int, cross: int, cross_key: int) -> None:
        super().__init__()
        self.heads, self.cross = heads, cross
        self.table, self.bias = nn.Embedding(_WORDS, hidden), nn.Embedding(8, heads)
        self.qk, self.v = nn.Linear(hidden, 2 * heads * key), nn.Linear(hidden, heads * value)
        self.out = nn.Linear(heads * value, hidden)
        self.cross_q, self.cross_kv = nn.Linear(hidden, cross * cross_key), nn.Linear(hidden, 2 * cross * cross_key)
        self.cross_out, self.head = nn.Linear(cross * cross_key, hidden), nn.Linear(hidden, _WORDS)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        h = self.table(source)
        place = torch.arange(source.shape[1])
        distance = (place[None] - place[:, None]).abs().clamp(max=7)
        bias = self.bias(distance).permute(2, 0, 1)[None]
        q, k = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qk(h).chunk(2, -1))
        v = self.v(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        h = h + self.out(((q @ k.transpose(2, 3) + bias).softmax(-1) @ v).transpose(1, 2).flatten(2))
        t = self.table(target)
        q = self.cross_q(t).unflatten(-1, (self.cross, -1)).transpose(1, 2)
        k, v = self.cross_kv(h).unflatten(-1, (2, self.cross, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=_SCALE)
        return self.head(t + self.cross_out(mixed.transpose(1, 2).flatten(2)))


class StateSpace(nn.Module):
    """A selective scan: a state per channel whose step sizes, inputs and outputs depend on the token."""

    def __init__(self, hidden: int, inner: int, rank: int, state: int) -> None:
        super().__init__()
        self.parts, self.inner = [rank, state, state], inner
        self.table, self.enter = nn.Embedding(_WORDS, hidden), nn.Linear(hidden, 2 * inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, 3, padding=2, groups=inner)
        self.select, self.steps = nn.Linear(inner, rank + 2 * state, bias=False), nn.Linear(rank, inner)
        self.decay, self.skip = nn.Parameter(torch.rand(inner, state)), nn.Parameter(torch.ones(inner))
        self.out, self.head = nn.Linear(inner, hidden), nn.Linear(hidden, _WORDS)

    def forward(self, words: Tensor) -> Tensor:
        h = self.table(words)
        x, gate = self.enter(h).transpose(1, 2).chunk(2, 1)
        x = F.silu(self.conv(x)[..., : words.shape[1]])
        step, into, out = self.select(x.transpose(1, 2)).split(self.parts, -1)
        step = F.softplus(self.steps(step)).transpose(1, 2)
        kept = torch.exp(-self.decay.exp()[None, :, None, :] * step[..., None])
        added = step[..., None] * into[:, None] * x[..., None]
        state, outputs = x.new_zeros(x.shape[0], self.inner, self.parts[1]), []
        for i in range(words.shape[1]):
            state = kept[:, :, i] * state + added[:, :, i]
            outputs.append((state @ out[:, i, :, None])[..., 0])
        y = (torch.stack(outputs, -1) + x * self.skip[:, None]) * F.silu(gate)
        return self.head(h + self.out(y.transpose(1, 2)))


class Mixer(nn.Module):
    """Layers over channels and layers over tokens; the number of patches is a width, too."""

    def __init__(self, hidden: int, over_tokens: int, over_channels: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, hidden, 2, 2)
        self.tokens = nn.Sequential(nn.Linear(16, over_tokens), nn.GELU(), nn.Linear(over_tokens, 16))
        self.channels = nn.Sequential(nn.Linear(hidden, over_channels), nn.GELU(), nn.Linear(over_channels, hidden))
        self.head = nn.Linear(hidden, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2)
        h = (h + self.tokens(h)).transpose(1, 2)
        return self.head((h + self.channels(h)).mean(1))


NETWORKS = [
    Architecture(
        "vision transformer",
        VisionTransformer,
        {"hidden": 12, "heads": 4, "key": 6, "value": 8, "mlp": 20},
        {"hidden": "patches", "heads": "q/0", "key": "q/1", "value": "v", "mlp": "mlp.1"},
        _image,
    ),
    Architecture(
        "windows",
        Windows,
        {"hidden": 12, "heads": 4, "width": 6},
        {"hidden": "patches", "heads": "qkv/0", "width": "qkv/1"},
        _image,
        lambda n: torch.randn(n, 3, 12, 16),
    ),
    Architecture(
        "grouped queries",
        GroupedQueries,
        {"hidden": 12, "groups": 4, "per_group": 2, "pairs": 4, "value": 6, "mlp": 20},
        {"hidden": "table", "groups": "q/0", "per_group": "q/1", "pairs": "q/2", "value": "v", "mlp": "gate"},
        _words,
        _more_words,
    ),
    Architecture(
        "encoder and decoder",
        EncoderDecoder,
        {"hidden": 12, "heads": 4, "key": 6, "value": 8, "cross": 2, "cross_key": 4},
        {
            "hidden": "table",
            "heads": "bias",
            "key": "qk",
            "value": "v",
            "cross": "cross_q/0",
            "cross_key": "cross_q/1",
        },
        lambda n: (_words(n), _more_words(n)),
        lambda n: (_more_words(n), _words(n)),
    ),
    Architecture(
        "state space",
        StateSpace,
        {"hidden": 12, "inner": 16, "rank": 4, "state": 6},
        {"hidden": "table", "inner": "enter", "rank": "select/0", "state": "select/1"},
        _words,
    ),
    Architecture(
        "mixer",
        Mixer,
        {"hidden": 12, "over_tokens": 10, "over_channels": 20},
        {"hidden": "patches", "over_tokens": "tokens.0", "over_channels": "channels.0"},
        _image,
    ),
]
