"""The sizes at which a proof node by node runs: as small as they may be, with maps of two places and more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune.capture.capturing import capture
from fxprune.capture.samples import Sample
from fxprune.proof.probes import small_samples
from fxprune.util.paths import attribute


def smallest(model: nn.Module, side: int) -> tuple[int, ...]:
    sample = Sample((torch.randn(2, 3, side, side),), {})
    captured = capture(model.eval(), sample)
    found = next(small_samples(sample, captured.graph, lambda name: attribute(model, name)))
    return tuple(found.tensors[0].shape[2:])


def maps(model: nn.Module, sides: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The sides of what each strided layer gives."""
    seen: list[tuple[int, ...]] = []
    hooks = [m.register_forward_hook(lambda m, _, y: seen.append(tuple(y.shape[2:]))) for m in model if _strides(m)]
    model(torch.randn(2, 3, *sides))
    for hook in hooks:
        hook.remove()
    return seen


def _strides(module: nn.Module) -> bool:
    return isinstance(module, (nn.Conv2d, nn.MaxPool2d))


@pytest.mark.parametrize("side", range(33, 66, 3))
def test_windows_over_the_edges_need_a_part_of_their_stride(side: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 4, 5, 2, 2)
    )
    height, width = smallest(model, side)
    assert height * width < side * side / 3
    last = maps(model, (height, width))[-1]
    assert last[0] >= 2
    assert last[1] > last[0]


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 3, stride=2), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, 2, 1, dilation=2)])
def test_other_windows_need_all_of_it(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), layer)
    stride = 64 // maps(model, (64, 64))[-1][0]
    assert smallest(model, 64) == (2 * stride, 3 * stride)


class AsWideAsTheMaps(nn.Module):
    def __init__(self, pool: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.pool = nn.Conv2d(3, 4, 3, stride=2, padding=1), pool

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        pooled: Tensor = nn.functional.avg_pool2d(x, self.pool(x))
        return pooled


@pytest.mark.parametrize("pool", [lambda x: x.shape[3], lambda x: x.shape[2]])
def test_a_kernel_as_large_as_one_side_fits_the_other(pool: Callable[[Tensor], Any]) -> None:
    model = AsWideAsTheMaps(pool)
    assert model(torch.randn(2, 3, *smallest(model, 32))).shape[-1] >= 1
