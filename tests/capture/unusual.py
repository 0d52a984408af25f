"""Networks written in ways that nobody plans for: a function of an image (batch, 12, 8, 8) between convolutions."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Between = Callable[[Any, Tensor], Tensor]
BETWEEN: dict[str, Between] = {}
_TABLE = torch.linspace(0.5, 2, 12)


class Net(nn.Module):
    """What the functions may use of it: layers, bare parameters, buffers, and lists of them."""

    def __init__(self, between: Between) -> None:
        super().__init__()
        self.between = between
        self.first, self.middle, self.last = (nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 12), (12, 12), (12, 5)))
        self.blocks = nn.ModuleList(copy.deepcopy(self.middle) for _ in range(2))
        self.blocks.append(self.middle)
        self.by_name = nn.ModuleDict({"left": nn.Conv2d(12, 6, 1), "right": nn.Conv2d(12, 6, 1)})
        self.kernels = nn.ParameterList([nn.Parameter(torch.randn(12, 12, 1, 1)), nn.Parameter(torch.rand(12))])
        self.mixed = nn.Parameter(torch.randn(3, 4, 4))
        self.spectrum = nn.Parameter(torch.randn(12, 8, 5, 2))
        self.narrow = nn.Conv2d(6, 12, 1)
        self.styles = nn.Linear(12, 12)
        self.register_buffer("mean", torch.rand(12))
        self.register_buffer("even", torch.arange(12) % 2 == 0)
        self.register_buffer("order", torch.randperm(12))
        self.plain = [torch.rand(12, 1, 1)]
        self.after = nn.Conv2d(12, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.after(self.between(self, self.first(x))).relu())


def between(function: Between) -> Between:
    BETWEEN[function.__name__] = function
    return function


@between
def functional_weights(net: Any, h: Tensor) -> Tensor:
    weight = net.middle.weight / net.middle.weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return F.conv2d(F.conv2d(h, net.kernels[0] * 2), weight, padding=1) * net.kernels[1].view(-1, 1, 1)


@between
def written_in_place(net: Any, h: Tensor) -> Tensor:
    h = net.middle(h) + 1
    h[:, :4] *= 0.5
    h[:, ::2] = 0.1
    h[:, 1] = h[:, 3]
    return h


@between
def written_through_views(net: Any, h: Tensor) -> Tensor:
    h = h * 1
    h.view(h.shape[0], 3, 4, *h.shape[2:])[:, 1] += 1
    h.permute(0, 2, 3, 1)[..., 0] = 2
    return h


@between
def stacked_chunks(net: Any, h: Tensor) -> Tensor:
    a, b, c = h.chunk(3, 1)
    return torch.stack(torch.stack([a, b.relu(), c.sigmoid()], 1).flatten(1, 2).unbind(1)[::-1], 1)


@between
def masked_by_channel(net: Any, h: Tensor) -> Tensor:
    return torch.where((torch.arange(h.shape[1]) % 2 == 0)[:, None, None], h, h.tanh()).masked_fill(h.abs() < 0.05, 0.3)


@between
def picked_by_mask(net: Any, h: Tensor) -> Tensor:
    return net.narrow(h[:, net.even]) + h[:, net.order]


@between
def einsum_with_ellipsis(net: Any, h: Tensor) -> Tensor:
    split = h.movedim(1, -1).unflatten(-1, (3, 4))
    return torch.einsum("...hd,hde->...he", split, net.mixed).flatten(-2).movedim(-1, 1)


@between
def unfolded(net: Any, h: Tensor) -> Tensor:
    return F.fold(F.unfold(h, 3, padding=1) * 0.5, h.shape[-2:], 3, padding=1)


@between
def sampled(net: Any, h: Tensor) -> Tensor:
    return F.grid_sample(h, net.narrow.weight[:2, 0, 0, 0] + h[:, :2].permute(0, 2, 3, 1).tanh(), align_corners=False)


@between
def gathered_and_scattered(net: Any, h: Tensor) -> Tensor:
    index = net.order.view(1, -1, 1, 1).expand_as(h)
    found = torch.zeros_like(h).scatter(1, index, h.gather(1, index) * 2)
    return found.index_add(1, torch.tensor([0, 1]), h[:, :2])


@between
def spectral(net: Any, h: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(h) * torch.view_as_complex(net.spectrum), s=(8, 8))


@between
def complex_parts(net: Any, h: Tensor) -> Tensor:
    turned = torch.complex(h[:, :6], h[:, 6:]) * torch.exp(1j * torch.tensor(0.3))
    return torch.cat([turned.real, turned.imag], 1)


@between
def checkpointed(net: Any, h: Tensor) -> Tensor:
    return checkpoint(net.middle, h, use_reentrant=False)


@between
def shared_blocks(net: Any, h: Tensor) -> Tensor:
    for number, block in enumerate(net.blocks):
        h = h + block(h) if number % 2 else block(h)
    return h


@between
def by_name(net: Any, h: Tensor) -> Tensor:
    return torch.cat([layer(h) for _, layer in sorted(net.by_name.items())], 1).relu_()


@between
def from_generator(net: Any, h: Tensor) -> Tensor:
    def steps(value: Tensor) -> Generator[Tensor, Tensor, None]:
        for layer in net.blocks:
            value = yield layer(value)

    turns = steps(h)
    h = next(turns)
    for _ in net.blocks[1:]:
        h = turns.send(h.relu())
    return h


@between
def reduced_functions(net: Any, h: Tensor) -> Tensor:
    return functools.reduce(lambda value, f: f(value), [torch.relu, net.middle, lambda t: t.mul(0.5)], h)


@between
def caught_exception(net: Any, h: Tensor) -> Tensor:
    try:
        return h.view(h.shape[0], -1, 7) * 1
    except RuntimeError:
        return h * 2


@between
def numpy_index(net: Any, h: Tensor) -> Tensor:
    return h[..., np.array([2, 0, 1])] + h[np.arange(1), :1].sum()


@between
def held_and_global_tensors(net: Any, h: Tensor) -> Tensor:
    return h * net.plain[0] + _TABLE.view(-1, 1, 1)


@between
def arithmetic_on_widths(net: Any, h: Tensor) -> Tensor:
    c = h.shape[1]
    h = h.reshape(h.shape[0], c // 4, 4, *h.shape[2:]).transpose(1, 2).reshape(h.shape) * c**-0.5
    a, b, rest = torch.split(h, [c // 4, c // 2, c - c // 4 - c // 2], 1)
    return torch.cat([b, a.relu(), rest.sum(1, keepdim=True).expand_as(rest) / math.sqrt(c)], 1)


@between
def masks_of_widths(net: Any, h: Tensor) -> Tensor:
    c = h.shape[1]
    mixed = torch.einsum("bchw,cd->bdhw", h, torch.eye(c) + 0.1 * torch.ones(c, c).triu(1))
    return mixed * (torch.arange(c) < c // 2).view(-1, 1, 1) + torch.linspace(0, 1, c)[:, None, None]


@between
def numpy_on_sizes(net: Any, h: Tensor) -> Tensor:
    return h / np.sqrt(np.prod(h.shape[2:])) + float(h.shape[3])


@between
def made_by_data(net: Any, h: Tensor) -> Tensor:
    style = net.styles(h.mean((2, 3))) + 1
    weight = (net.middle.weight[None] * style[:, None, :, None, None]).flatten(0, 1)
    return F.conv2d(h.reshape(1, -1, *h.shape[2:]), weight, padding=1, groups=h.shape[0]).view_as(h)


@between
def blurred(net: Any, h: Tensor) -> Tensor:
    kernel = torch.tensor([1.0, 2.0, 1.0]).expand(h.shape[1], 1, 1, 3)
    return F.conv2d(h, kernel, padding=(0, 1), groups=h.shape[1])


@between
def shifted(net: Any, h: Tensor) -> Tensor:
    quarter, out = h.shape[1] // 4, torch.zeros_like(h)
    out[:, :quarter, :, 1:] = h[:, :quarter, :, :-1]
    out[:, quarter:, 1:] = h[:, quarter:, :-1]
    return out


@between
def replaced_buffer(net: Any, h: Tensor) -> Tensor:
    if net.training:
        net.mean = 0.9 * net.mean + 0.1 * h.mean((0, 2, 3)).detach()
    return h - net.mean[:, None, None]


@between
def counted_buffer(net: Any, h: Tensor) -> Tensor:
    net.mean.mul_(0.9).add_(h.mean((0, 2, 3)).detach(), alpha=0.1)
    return h * net.mean[:, None, None]


@between
def rotated(net: Any, h: Tensor) -> Tensor:
    tokens = h.flatten(2).mT
    angles = torch.outer(torch.arange(tokens.shape[1]).float(), 100.0 ** (-torch.arange(0, 12, 2) / 12))
    even, odd = tokens[..., ::2], tokens[..., 1::2]
    turned = [even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()]
    return torch.stack(turned, -1).flatten(-2).mT.view_as(h)


@between
def random_depth(net: Any, h: Tensor) -> Tensor:
    if net.training:
        return h + net.middle(h) * torch.empty(h.shape[0], 1, 1, 1).bernoulli_(0.5)
    return h + net.middle(h)


@between
def noisy(net: Any, h: Tensor) -> Tensor:
    return F.dropout2d(h + 0.1 * torch.randn_like(h) if net.training else h, 0.3, net.training)
