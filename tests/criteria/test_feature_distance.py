"""FOAD: worked coverings, both treatments of kept neighbours, and what holds of every covering."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fxprune.calibration import Seen
from fxprune.criteria.feature_distance import FeatureSimilarity, covering


def similar(maps: Tensor) -> np.ndarray:
    statistic = FeatureSimilarity(maps.shape[1])
    statistic.update(Seen(maps))
    return statistic.result()


def filled(*values: float, side: int = 2) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[None, :, None, None].expand(1, len(values), side, side)


FOUR = filled(0, 0.1, 3, 3.5)


def test_worked_similarities() -> None:
    found = similar(FOUR)
    expected = [0.833333, 0.142857, 0.125, 0.147059, 0.128205, 0.5]
    np.testing.assert_allclose(found[np.triu_indices(4, 1)], expected, atol=1e-6)
    np.testing.assert_array_equal(np.diag(found), np.ones(4))


@pytest.mark.parametrize(
    ("t", "s", "kept"),
    [(1, 0, [0, 2]), (1, 0.6, [0, 2, 3]), (2, 0, [0, 3]), (2, 0.2, [0, 2]), (3, 0, [0]), (1, 1.1, [0, 1, 2, 3])],
)
def test_worked_coverings(t: int, s: float, kept: list[int]) -> None:
    assert covering(similar(FOUR), t, s) == kept


def test_order_matters() -> None:
    values = [0.0, 1, 1.9, 2.7]
    assert covering(similar(filled(*values, side=1)), 1, 0) == [0, 2]
    assert [3 - i for i in covering(similar(filled(*values[::-1], side=1)), 1, 0)] == [3, 1]


def test_a_kept_neighbour_takes_a_slot() -> None:
    near = similar(filled(0, 1, 5, 20, side=1))
    assert covering(near, 1, 0) == [0, 2, 3]
    assert covering(near, 2, 0) == [0, 3]
    assert covering(near, 1, 0, kept_block_slots=False) == [0, 2]


def test_equal_channels() -> None:
    assert covering(similar(filled(1, 1, 1, 1)), 1, 0) == [0, 2, 3]
    assert len(covering(similar(filled(*[1.0] * 16)), 1, 0)) == 15
    assert covering(similar(filled(1, 1, 1, 1)), 3, 0, kept_block_slots=False) == [0]


def test_the_mean_is_that_of_reciprocals() -> None:
    maps = torch.zeros(2, 2, 1, dtype=torch.float64)
    maps[1, 1] = 3
    assert similar(maps)[0, 1] == pytest.approx(0.625)


@pytest.mark.parametrize("t", [1, 2, 3])
@pytest.mark.parametrize("kept_block_slots", [True, False])
def test_what_holds_of_every_covering(t: int, kept_block_slots: bool) -> None:
    found = similar(torch.randn(3, 64, 5, dtype=torch.float64))
    for s in (0.0, 0.25, 0.3):
        kept = covering(found, t, s, kept_block_slots)
        gone = sorted(set(range(64)) - set(kept))
        assert len(kept) >= math.ceil(64 / (t + 1))
        assert all(found[j, kept].max() >= s for j in gone)


def test_similarities_against_distances_written_out() -> None:
    maps = torch.randn(4, 6, 3, 3, dtype=torch.float64)
    direct = (maps[:, :, None] - maps[:, None]).flatten(3).norm(dim=3)
    np.testing.assert_allclose(similar(maps), (1 / (1 + direct)).mean(0).numpy(), atol=1e-9)
