"""Small networks to be refused, and the check that a refusal changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from tests.snapshots import process, snapshot

Options = dict[str, Any]


def small_net() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 5)]
    return nn.Sequential(*layers).eval()


def mlp(first: nn.Module | None = None) -> nn.Module:
    return nn.Sequential(first or nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


def image(*shape: int) -> torch.Tensor:
    return torch.randn(shape or (2, 3, 8, 8))


def vector() -> torch.Tensor:
    return torch.randn(2, 8)


def refused(
    kind: type[Exception], words: str, model: nn.Module, sample: Any, ratio: Any = 0.3, **options: Any
) -> Exception:
    """Compile, expect the exception, and check that nothing was changed by the attempt."""
    before, around = snapshot(model), process()
    with pytest.raises(kind, match=words) as caught:
        fxprune.compile(model, sample, ratio, **options)
    assert type(caught.value) is kind
    assert isinstance(caught.value, fxprune.FxpruneError)
    assert snapshot(model) == before
    assert process() == around
    return caught.value
