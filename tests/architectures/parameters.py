"""Tensors that belong to no layer: bare parameters, buffers per channel, index buffers, reparametrised weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tests.architectures.architecture import Architecture


def _image(batch: int) -> Tensor:
    return torch.randn(batch, 3, 8, 8)


def _larger(batch: int) -> Tensor:
    return torch.randn(batch, 3, 12, 10)


class BareParameters(nn.Module):
    """Every weight a parameter of the network itself, used through functions and operators."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(first, 3, 3, 3))
        self.gain, self.bias = nn.Parameter(torch.ones(first)), nn.Parameter(torch.zeros(1, first, 1, 1))
        self.mixer = nn.Parameter(torch.randn(first, second))
        self.table = nn.ParameterDict({"out": nn.Parameter(torch.randn(second, 4))})
        self.steps = nn.ParameterList([nn.Parameter(torch.ones(second)) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        h = F.conv2d(x, self.kernel, padding=1) * self.gain.view(1, -1, 1, 1) + self.bias
        h = h.relu().mean((2, 3)) @ self.mixer
        for step in self.steps:
            h = h + step * h.tanh()
        return h @ self.table["out"]


class LayerScale(nn.Module):
    """Branches scaled per channel (ConvNeXt), with layer norm in channels-last form."""

    def __init__(self, trunk: int, inner: int) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, trunk, 2, 2), nn.Conv2d(trunk, trunk, 3, padding=1, groups=trunk)
        self.norm, self.wide, self.back = nn.LayerNorm(trunk), nn.Linear(trunk, inner), nn.Linear(inner, trunk)
        self.scale = nn.Parameter(torch.full((trunk,), 1e-6))
        self.head = nn.Linear(trunk, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        branch = self.norm(self.depthwise(h).permute(0, 2, 3, 1))
        branch = self.back(F.gelu(self.wide(branch))) * self.scale
        return self.head((h + branch.permute(0, 3, 1, 2)).mean((2, 3)))


class Buffers(nn.Module):
    """Constants per channel: statistics to normalise with, and weights of an exponential average."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.register_buffer("image_mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
        self.register_buffer("center", torch.zeros(width), persistent=False)
        self.register_buffer("decay", torch.linspace(0.1, 0.9, width)[None, :, None, None])
        self.first, self.second = nn.Conv2d(3, width, 3), nn.Conv2d(width, hidden, 3)
        self.last = nn.Conv2d(hidden, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x - self.image_mean)
        h = (h - self.center.view(1, -1, 1, 1)) * self.decay
        return self.last(self.second(h).relu())


class Reparametrised(nn.Module):
    """Weight norm in the form of today and the old one, over rows and over the whole weight."""

    def __init__(self, first: int, second: int, third: int) -> None:
        super().__init__()
        self.first = parametrizations.weight_norm(nn.Conv2d(3, first, 3, padding=1))
        self.second = nn.utils.weight_norm(nn.Conv2d(first, second, 3, padding=1))
        self.third = parametrizations.weight_norm(nn.Linear(second, third), dim=None)
        self.last = nn.Linear(third, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.second(self.first(x).relu()), 0.2)
        return self.last(self.third(h.mean((2, 3))).relu())


class Standardised(nn.Module):
    """Convolutions whose weights are standardised over what they read, and group norm."""

    def __init__(self, first: int, groups: int, per_group: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, first, 3)
        self.second = nn.Conv2d(first, groups * per_group, 3)
        self.norm, self.last = nn.GroupNorm(groups, groups * per_group), nn.Conv2d(groups * per_group, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.second.weight
        mean, variance = weight.mean((1, 2, 3), keepdim=True), weight.var((1, 2, 3), keepdim=True, unbiased=False)
        h = F.conv2d(self.first(x).relu(), (weight - mean) / (variance + 1e-5).sqrt(), self.second.bias)
        return self.last(self.norm(h).relu())


class Modulated(nn.Module):
    """A condition scales and shifts the channels (FiLM), one layer making both; a gate squeezes and excites."""

    def __init__(self, width: int, squeezed: int, condition: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3)
        self.condition, self.modulation = nn.Linear(5, condition), nn.Linear(condition, 2 * width)
        self.squeeze, self.excite = nn.Linear(width, squeezed), nn.Linear(squeezed, width)
        self.last = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        h = self.first(x)
        scale, shift = self.modulation(self.condition(given).relu())[:, :, None, None].chunk(2, 1)
        h = (h * (1 + scale) + shift).relu()
        gate = self.excite(self.squeeze(h.mean((2, 3))).relu()).sigmoid()
        return self.last(h * gate[..., None, None])


class Spectral(nn.Module):
    """Spectral norm in both forms: the largest singular value is estimated from vectors that are buffers."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.first = parametrizations.spectral_norm(nn.Conv2d(3, first, 3, padding=1))
        self.second = nn.utils.spectral_norm(nn.Conv2d(first, second, 3, padding=1))
        self.last = nn.Linear(second, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).relu()).relu().mean((2, 3)))


class Interactions(nn.Module):
    """Products of all pairs of features, picked by two tensors of positions that are no buffers."""

    def __init__(self, hidden: int, embedded: int, top: int) -> None:
        super().__init__()
        self.dense = nn.Sequential(nn.Linear(5, hidden), nn.ReLU(), nn.Linear(hidden, embedded))
        self.tables = nn.ModuleList([nn.Embedding(7, embedded) for _ in range(3)])
        self.top = nn.Sequential(nn.Linear(embedded + 6, top), nn.ReLU(), nn.Linear(top, 1))
        self.rows, self.columns = torch.tril_indices(4, 4, -1)

    def forward(self, dense: Tensor, categories: Tensor) -> Tensor:
        dense = self.dense(dense)
        looked = [table(categories[:, i]) for i, table in enumerate(self.tables)]
        features = torch.stack([dense, *looked], dim=1)
        pairs = torch.bmm(features, features.transpose(1, 2))[:, self.rows, self.columns]
        return self.top(torch.cat([dense, pairs], dim=1)).sigmoid()


class Fourier(nn.Module):
    """Complex weights on the lowest frequencies, the others zero (neural operators)."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.second, self.first = second, nn.Conv2d(3, first, 1)
        self.weight = nn.Parameter(torch.randn(first, second, 3, 3, dtype=torch.cdouble))
        self.around, self.last = nn.Conv2d(first, second, 1), nn.Conv2d(second, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        found = torch.fft.rfft2(h)
        kept = torch.zeros(h.shape[0], self.second, *found.shape[-2:], dtype=found.dtype, device=h.device)
        kept[:, :, :3, :3] = torch.einsum("bixy,ioxy->boxy", found[:, :, :3, :3], self.weight)
        return self.last(F.gelu(torch.fft.irfft2(kept, s=h.shape[-2:]) + self.around(h)))


_DIRECTION = "parametrizations.weight.original1"
NETWORKS = [
    Architecture(
        "bare parameters",
        BareParameters,
        {"first": 8, "second": 12},
        {"first": "kernel", "second": "mixer"},
        _image,
        _larger,
    ),
    Architecture(
        "layer scale", LayerScale, {"trunk": 8, "inner": 20}, {"trunk": "stem", "inner": "wide"}, _image, _larger
    ),
    Architecture(
        "buffers", Buffers, {"width": 8, "hidden": 10}, {"width": "first", "hidden": "second"}, _image, _larger
    ),
    Architecture(
        "weight norm",
        Reparametrised,
        {"first": 8, "second": 10, "third": 6},
        {"first": f"first.{_DIRECTION}", "second": "second.weight_v", "third": f"third.{_DIRECTION}"},
        _image,
        _larger,
    ),
    Architecture(
        "spectral norm",
        Spectral,
        {"first": 8, "second": 10},
        {"first": "first.bias", "second": "second.bias"},
        _image,
        _larger,
    ),
    Architecture(
        "standardised weights",
        Standardised,
        {"first": 8, "groups": 4, "per_group": 4},
        {"first": "first", "groups": "second/0", "per_group": "second/1"},
        _image,
        _larger,
    ),
    Architecture(
        "interactions",
        Interactions,
        {"hidden": 12, "embedded": 8, "top": 10},
        {"hidden": "dense.0", "embedded": "dense.2", "top": "top.0"},
        lambda n: (torch.randn(n, 5), torch.randint(0, 7, (n, 3))),
    ),
    Architecture(
        "fourier", Fourier, {"first": 8, "second": 10}, {"first": "first", "second": "around"}, _image, _larger
    ),
    Architecture(
        "modulated",
        Modulated,
        {"width": 8, "squeezed": 4, "condition": 6},
        {"width": "first", "squeezed": "squeeze", "condition": "condition"},
        lambda n: (_image(n), torch.randn(n, 5)),
        lambda n: (_larger(n), torch.randn(n, 5)),
    ),
]
