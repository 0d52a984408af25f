"""FOAD: worked coverings, both treatments of kept neighbours, and what holds of every covering."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.analysis.groups import Group
from fxprune.calibration import Seen
from fxprune.criteria import Study
from fxprune.criteria.feature_distance import covering, similarity
from fxprune.criteria.features import PairMean


def similar(maps: Tensor) -> np.ndarray:
    statistic = PairMean(maps.shape[1], similarity)
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


@pytest.mark.parametrize("kept_block_slots", [True, False])
def test_coverings_against_the_rule_written_out(kept_block_slots: bool) -> None:
    found = similar(torch.randn(2, 24, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    for t in (1, 2, 5):
        for s in np.quantile(found, [0, 0.5, 0.8, 0.9, 0.97]):
            assert covering(found, t, s, kept_block_slots) == written_out(found, t, s, kept_block_slots)


def written_out(found: np.ndarray, t: int, s: float, kept_block_slots: bool) -> list[int]:
    kept: list[int] = []
    gone: set[int] = set()
    for i in range(len(found)):
        if i in gone:
            continue
        kept.append(i)
        others = [j for j in range(len(found)) if j != i and j not in gone and (kept_block_slots or j not in kept)]
        nearest = sorted(others, key=lambda j: (-found[i, j], j))[:t]
        gone |= {j for j in nearest if found[i, j] >= s and j not in kept}
    return kept


class Rising:
    """Three channels of one group, all alike; what stays does not fall from setting to setting."""

    monotone = False
    kept = (3, 1, 2, 2, 0, 1, 0)

    def __init__(self, group: Group) -> None:
        self.group, self.preference = group, {group: np.zeros(3)}

    def __len__(self) -> int:
        return len(self.kept)

    def keep(self, rung: int) -> dict[Group, np.ndarray]:
        return {self.group: np.arange(3) < self.kept[rung]}

    def ladders(self, problem: object) -> list[Rising]:
        return [self]


def test_the_first_setting_that_saves_enough_is_found_where_later_ones_save_less() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1)).eval()

    class Knob:
        name = "knob"

        def select(self, study: Study) -> Rising:
            return Rising(study.graph.groups[0])

    plan = fxprune.plan(model, torch.randn(1, 3, 4, 4), 0.6, criterion=Knob(), round_to=1)
    assert [len(kept) for kept in plan.groups.values()] == [1]


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
def test_properties_of_every_covering(t: int, kept_block_slots: bool) -> None:
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
