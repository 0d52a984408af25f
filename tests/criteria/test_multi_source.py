"""Multi-source information: worked numbers and the greedy choice of sets."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from fxprune.analysis.groups import Group
from fxprune.axes.elements import Mask
from fxprune.calibration import Seen
from fxprune.criteria import MultiSource
from fxprune.criteria.base import Problem
from fxprune.criteria.features import PairMean
from fxprune.criteria.multi_source import _by_sets, correlation, uniqueness, weight_entropy
from fxprune.errors import CriterionError
from tests.criteria.test_entropy import groups


def uniqueness_of(maps: torch.Tensor) -> np.ndarray:
    statistic = PairMean(maps.shape[1], correlation)
    statistic.update(Seen(maps))
    return uniqueness(statistic.result())


def test_worked_weight_entropies() -> None:
    assert weight_entropy(torch.full((2, 9), 0.3)).tolist() == [0, 0]
    spread = [-0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4]
    lonely = [0.5] * 8 + [-0.4]
    found = weight_entropy(torch.tensor([spread, lonely], dtype=torch.float64))
    np.testing.assert_allclose(found, [math.log(9), 0.348832], atol=1e-6)
    assert math.log(9) == pytest.approx(2.197225, abs=1e-6)


MAPS = torch.tensor([[[1.0, 2, 3, 4], [2, 4, 6, 8], [4, 3, 2, 1], [1, -1, -1, 1]]], dtype=torch.float64)


def test_worked_uniqueness() -> None:
    np.testing.assert_allclose(uniqueness_of(MAPS), [1 / 3, 1 / 3, 1 / 3, 1], atol=1e-9)


def test_scale_and_offset_of_maps_play_no_role() -> None:
    maps = torch.randn(4, 6, 30, dtype=torch.float64)
    scale = torch.tensor([2.0, -3, 0.1, 1, 5, -1], dtype=torch.float64)[:, None]
    np.testing.assert_allclose(uniqueness_of(scale * maps + 4), uniqueness_of(maps), atol=1e-9)


def test_still_maps_and_single_channels() -> None:
    still = torch.cat([MAPS, torch.full((1, 1, 4), 0.1, dtype=torch.float64)], 1)
    assert uniqueness_of(still)[4] == 0
    assert uniqueness_of(MAPS[:, :1]).tolist() == [1]


def test_fusion() -> None:
    relative, absolute = np.array([0.0, 1, 2]), np.array([5.0, 5, 5])
    np.testing.assert_allclose(MultiSource(alpha=0.25).fused(relative, absolute), [0.375, 0.5, 0.625])
    np.testing.assert_allclose(MultiSource(fusion="product").fused(relative, absolute), [0, 0.25, 0.5])


def test_sets_go_by_their_effect_for_what_they_save() -> None:
    a, b = groups(10, 20)

    def saved(masks: Mapping[Group, Mask]) -> float:
        return sum(float((~mask).sum()) for mask in masks.values())

    problem = Problem((a, b), saved, lambda g: 7 if g is a else 15)
    order = {a: np.arange(10)[::-1], b: np.arange(20)[::-1]}
    # Steps of one unit for a, of two for b: prices 1, 5, 5 and 2, 2, 2.
    effects = {a: np.cumsum([1.0, 5, 5, 9, 9, 9, 9, 9, 9]), b: np.cumsum([4.0] * 9)}
    queue = _by_sets(problem, order, effects)
    assert queue == [(a, 9), (b, 19), (b, 18), (b, 17), (b, 16), (b, 15), (a, 8), (a, 7)]


@pytest.mark.parametrize(
    "options", [{"alpha": 2}, {"fusion": "max"}, {"bins": 1}, {"global_mode": "x"}, {"tap": "before"}]
)
def test_unknown_arguments(options: dict[str, object]) -> None:
    with pytest.raises(CriterionError):
        MultiSource(**options)  # type: ignore[arg-type]
