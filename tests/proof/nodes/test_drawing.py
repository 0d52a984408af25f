"""The values that the proof draws tell entries apart, also in tensors that have few."""

from __future__ import annotations

import pytest
import torch

from fxprune.proof.nodes.drawing import Patterns


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("shape", [(16,), (16, 1), (16, 1, 1, 1), (1, 16)])
def test_one_wrong_index_into_a_parameter_shows(shape: tuple[int, ...], positive: bool) -> None:
    patterns, equal, pairs = Patterns(torch.float32, torch.device("cpu"), 0), 0, 0
    for salt in range(200):
        values = patterns.parameter(torch.empty(shape), salt, positive=positive).flatten()
        equal += int((values[:, None] == values).sum()) - len(values)
        pairs += len(values) * (len(values) - 1)
    assert equal < 0.004 * pairs


def test_sums_of_products_are_exact_in_single_precision() -> None:
    patterns, exact = (Patterns(dtype, torch.device("cpu"), 0) for dtype in (torch.float32, torch.float64))
    found, expected = [
        p.drawn("any", (8, 64), 3) @ p.parameter(torch.empty(32, 64), 5, positive=False).t()
        + p.parameter(torch.empty(32), 7, positive=False)
        for p in (patterns, exact)
    ]
    assert torch.equal(found.double(), expected)
