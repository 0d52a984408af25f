"""Gradients of a network's parameters, and whether two networks have the same."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from tests.nets.values import ROUNDING, flat

TOLERANCE = 1e-9
Gradients = dict[str, Tensor]


def gradients(network: nn.Module, sample: tuple[Tensor, ...]) -> Gradients:
    """Return the gradient of the sum of squared outputs for every parameter that has one, by name."""
    network.zero_grad()
    torch.autograd.backward([(output**2).sum() for output in flat(network(*sample))])
    return {name: p.grad.clone() for name, p in sorted(network.named_parameters()) if p.grad is not None}


def assert_equal(ours: Gradients, expected: Gradients, again: Callable[[], Gradients]) -> None:
    """The same names and values, relative to the largest of all: some are zero but for rounding (a key's bias).

    All are where a network's output is zero but for rounding, as the mean of an instance norm is. ``again`` gives what
    is expected with parameters moved by rounding: what that changes, as where a softmax is saturated, nobody knows any
    better.
    """
    assert ours.keys() == expected.keys()
    scale = max(ROUNDING, *(gradient.abs().max().item() for gradient in expected.values()))
    different = [name for name in ours if _distance(ours[name], expected[name]) > TOLERANCE * scale]
    moved = again() if different else {}
    for name in different:
        unknown = 10 * _distance(moved[name], expected[name])
        assert _distance(ours[name], expected[name]) <= TOLERANCE * scale + unknown, name


def moved_by_rounding(network: nn.Module) -> nn.Module:
    """Return a copy whose every parameter has moved by a few units in the last place."""
    generator = torch.Generator().manual_seed(0)
    copy = deepcopy(network)
    with torch.no_grad():
        for parameter in copy.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.mul_(1 + 4 * torch.finfo(parameter.dtype).eps * noise)
    return copy


def _distance(left: Tensor, right: Tensor) -> float:
    return (left - right).abs().max().item()
