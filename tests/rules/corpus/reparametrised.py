"""Weights that are computed from other parameters: weight norm and spectral norm, hooks and parametrizations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from tests.rules.cases import IMAGE, TOKENS, Case, Layout
from tests.rules.oracles import Kept


class Computed(nn.Module):
    """Three layers, each changed by ``change`` before use."""

    def __init__(self, change: Callable[[nn.Module], nn.Module], convolution: bool = False) -> None:
        super().__init__()
        if convolution:
            self.first, self.inner, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)
        else:
            self.first, self.inner, self.last = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 4)
        change(self.inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(self.first(x).relu()).relu())


class Standardised(nn.Module):
    """Weight standardisation written in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.inner.weight
        weight = (weight - weight.mean(1, keepdim=True)) / (weight.std(1, keepdim=True) + 1e-5)
        return self.last(F.linear(self.first(x).relu(), weight, self.inner.bias).relu())


def _read(net: Any, kept: Kept, x: Tensor, weight: Tensor, name: str) -> Tensor:
    """The net around an inner weight that is narrow already."""
    columns, rows = kept("first.weight"), kept(name)
    h = net.first(x).relu()
    if h.dim() == 4:
        h = F.conv2d(h[:, columns], weight, net.inner.bias[rows]).relu()
        return F.conv2d(h, net.last.weight[:, rows], net.last.bias)
    h = F.linear(h[..., columns], weight, net.inner.bias[rows]).relu()
    return F.linear(h, net.last.weight[:, rows], net.last.bias)


def _weight_normed(direction: str, length: str) -> Callable[[Any, Kept, tuple[Any, ...]], Tensor]:
    """``g * v / |v|`` with the norm over what is kept."""

    def narrow(net: Any, kept: Kept, args: tuple[Any, ...]) -> Tensor:
        v = kept.slice(direction, net.get_parameter(direction))
        g = kept.slice(length, net.get_parameter(length))
        norm = v.flatten(1).norm(dim=1).view(-1, *[1] * (v.dim() - 1)) if g.numel() > 1 else v.norm()
        return _read(net, kept, args[0], g * v / norm, direction)

    return narrow


def _spectral(weight_name: str, left: str, right: str) -> Callable[[Any, Kept, tuple[Any, ...]], Tensor]:
    """The stored singular vectors cut with the weight; sigma is what they give."""

    def narrow(net: Any, kept: Kept, args: tuple[Any, ...]) -> Tensor:
        weight = kept.slice(weight_name, net.get_parameter(weight_name))
        u, v = (kept.slice(n, net.get_buffer(n)) for n in (left, right))
        sigma = u @ (weight.flatten(1) @ v)
        return _read(net, kept, args[0], weight / sigma, weight_name)

    return narrow


def _standardised(net: Any, kept: Kept, args: tuple[Any, ...]) -> Tensor:
    weight = kept.slice("inner.weight", net.inner.weight)
    weight = (weight - weight.mean(1, keepdim=True)) / (weight.std(1, keepdim=True) + 1e-5)
    return _read(net, kept, args[0], weight, "inner.weight")


_NEW_G, _NEW_V = "inner.parametrizations.weight.original0", "inner.parametrizations.weight.original1"
_OLD_G, _OLD_V = "inner.weight_g", "inner.weight_v"
_NEW_W = "inner.parametrizations.weight.original"
_NEW_VECTORS = "inner.parametrizations.weight.0._u", "inner.parametrizations.weight.0._v"


def _case(name: str, change: Any, narrow: Any, weight: str, layout: Layout = TOKENS) -> Case:
    convolution = layout is IMAGE
    return Case(
        f"reparametrised/{name}",
        lambda: Computed(change, convolution),
        layout.sample,
        ("first.weight", weight),
        narrow,
        layout.resized,
    )


CASES = [
    _case("weight norm", parametrizations.weight_norm, _weight_normed(_NEW_V, _NEW_G), _NEW_V),
    _case("weight norm of a convolution", parametrizations.weight_norm, _weight_normed(_NEW_V, _NEW_G), _NEW_V, IMAGE),
    _case(
        "weight norm of the whole",
        lambda m: parametrizations.weight_norm(m, dim=None),
        _weight_normed(_NEW_V, _NEW_G),
        _NEW_V,
    ),
    _case("weight norm by a hook", weight_norm, _weight_normed(_OLD_V, _OLD_G), _OLD_V),
    _case("weight norm of a convolution by a hook", weight_norm, _weight_normed(_OLD_V, _OLD_G), _OLD_V, IMAGE),
    _case("spectral norm", parametrizations.spectral_norm, _spectral(_NEW_W, *_NEW_VECTORS), _NEW_W),
    _case(
        "spectral norm of a convolution",
        parametrizations.spectral_norm,
        _spectral(_NEW_W, *_NEW_VECTORS),
        _NEW_W,
        IMAGE,
    ),
    _case(
        "spectral norm by a hook",
        spectral_norm,
        _spectral("inner.weight_orig", "inner.weight_u", "inner.weight_v"),
        "inner.weight_orig",
    ),
    Case("reparametrised/standardised", Standardised, TOKENS.sample, ("first.weight", "inner.weight"), _standardised),
]
