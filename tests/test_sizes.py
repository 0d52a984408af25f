"""Sizes that mix input-dependent parts with channels, and networks whose sizes do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxprune
from fxprune.axes.elements import Mask, kept_mask
from fxprune.axes.expressions import Axis, Channels, Concat, Fixed, Origin, Product, concat, gather, product
from fxprune.rules.repair import size_map

FOUR, SIX = Channels(4, Origin("a", 0)), Channels(6, Origin("b", 0))
MASKS: dict[Channels, Mask] = {
    FOUR: np.array([True, False, False, True]),
    SIX: np.array([True, True, False, True, False, False]),
}


def grown(axis: Axis, factor: int) -> Axis:
    """The same axis where every input-dependent size is larger."""
    if isinstance(axis, Fixed):
        return Fixed(axis.size * factor, axis.why)
    if isinstance(axis, Product):
        return product([grown(f, factor) for f in axis.factors])
    if isinstance(axis, Concat):
        return concat([grown(p, factor) for p in axis.parts])
    return axis


TOKENS = concat((FOUR, Fixed(5, "space")))


@pytest.mark.parametrize(
    "axis",
    [
        product((Fixed(3, "batch"), FOUR)),
        product((Fixed(3, "batch"), FOUR, Fixed(2, "space"), SIX)),
        TOKENS,
        concat((FOUR, Fixed(5, "space"), SIX, Fixed(1, "space"))),
        product((SIX, TOKENS)),
        concat((product((FOUR, Fixed(2, "space"))), FOUR, product((Fixed(3, "space"), FOUR)))),
    ],
)
@pytest.mark.parametrize("factor", [1, 2, 7])
def test_sizes_follow_the_input(axis: Axis, factor: int) -> None:
    sizes = size_map(axis, MASKS)
    larger = grown(axis, factor)

    def compute(function: Any, *args: int) -> int:
        return int(function(*args))

    kept = int(kept_mask(larger, MASKS).sum())
    assert sizes.kept(larger.size, compute) == kept
    assert sizes.full(kept, compute) == larger.size


@pytest.mark.parametrize(
    "axis",
    [
        gather(TOKENS, np.array([0, 1, 4, 5])),
        product((FOUR, gather(TOKENS, np.array([0, 1, 4, 5])))),
        product((TOKENS, concat((SIX, Fixed(2, "space"))))),
        concat((product((FOUR, Fixed(3, "space"))), product((SIX, Fixed(2, "space"))))),
    ],
)
def test_where_no_single_number_serves_the_ratio_is_that_of_the_sample(axis: Axis) -> None:
    sizes, kept = size_map(axis, MASKS), int(kept_mask(axis, MASKS).sum())

    def compute(function: Any, *args: int) -> int:
        return int(function(*args))

    assert 0 < kept < axis.size
    for factor in (1, 3):
        assert sizes.kept(factor * axis.size, compute) == factor * kept
        assert sizes.full(factor * kept, compute) == factor * axis.size


def test_at_full_width_no_sizes_are_computed() -> None:
    assert size_map(TOKENS, {}).kept(9, lambda function: function()) == 9


class Registers(nn.Module):
    """Tokens of the image beside learned ones, which may go, in a reshape that spells their number out."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.registers = nn.Parameter(torch.randn(1, 6, 8))
        self.qkv = nn.Linear(8, 24)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.registers.expand(x.shape[0], -1, -1), tokens], 1)
        rows, count, _ = tokens.shape
        q, k, v = self.qkv(tokens).reshape(rows, count, 3, 2, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(rows, count, -1)
        return self.head(mixed.mean(1))


def test_learned_tokens_lose_channels_and_the_resolution_stays_free() -> None:
    model = Registers().eval()
    pruned = fxprune.compile(model, torch.randn(2, 3, 16, 16), 0.5, budget="channels", scope="uniform")
    assert pruned.get_parameter("registers").shape[1] < 6
    report = fxprune.report(pruned)
    assert report.proof is not None
    assert len(report.proof.resolutions) == 2
    assert pruned(torch.randn(3, 3, 32, 24)).shape == (3, 5)
