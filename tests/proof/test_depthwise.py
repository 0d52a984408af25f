"""Depthwise convolutions of clips, summed over the taps of the kernel, are torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fxprune.proof.running import is_summed, modes

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "padded": {"padding": (1, 0, 2)},
    "dilated": {"dilation": (2, 1, 2), "padding": (2, 1, 4)},
    "same": {"padding": "same"},
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_sums_over_taps_are_the_convolution(options: dict[str, Any], batch: int) -> None:
    x = torch.randn(batch, 6, 7, 9, 8, dtype=torch.float64)
    weight, bias = torch.randn(6, 1, 3, 1, 5, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    with modes(torch.float64, carry_nan=False):
        found = F.conv3d(x, weight, bias, groups=6, **options)
    expected = F.conv3d(x, weight, bias, groups=6, **options)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.is_contiguous()


def test_other_convolutions_are_left_alone() -> None:
    clip, image = torch.randn(1, 4, 3, 5, 5), torch.randn(1, 4, 5, 5)
    func = torch.ops.aten.convolution.default

    def arguments(x: torch.Tensor, stride: int = 1, transposed: bool = False, groups: int = 4) -> tuple[Any, ...]:
        return x, torch.randn(4, 1, 1, 1, 1), None, [stride], [0], [1], transposed, [0], groups

    assert is_summed(func, arguments(clip))
    assert not is_summed(func, arguments(clip, stride=2))
    assert not is_summed(func, arguments(clip, transposed=True))
    assert not is_summed(func, arguments(clip, groups=2))
    assert not is_summed(func, arguments(image))
    assert not is_summed(torch.ops.aten.mm.default, (clip, clip))
