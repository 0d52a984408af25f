"""Normalisers on numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fxprune.criteria.base import NORMALISERS, normaliser_by_name, removal_order
from fxprune.errors import CriterionError


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", [1.0, 3.0, 4.0]),
        ("mean", [0.375, 1.125, 1.5]),
        ("max", [0.25, 0.75, 1.0]),
        ("sum", [0.125, 0.375, 0.5]),
        ("minmax", [0.0, 2 / 3, 1.0]),
        ("zscore", [-1.336306, 0.267261, 1.069045]),
        ("l2", [0.196116, 0.588348, 0.784465]),
        ("variance", [-1.071429, 0.214286, 0.857143]),
        ("lamp", [1 / 26, 9 / 25, 1.0]),
    ],
)
def test_worked_numbers(name: str, expected: list[float]) -> None:
    np.testing.assert_allclose(normaliser_by_name(name)(np.array([1.0, 3.0, 4.0])), expected, atol=1e-6)


@pytest.mark.parametrize("name", NORMALISERS)
@pytest.mark.parametrize("scores", [[0.0, 0.0, 0.0], [2.0, 2.0], [5.0]])
def test_no_scale_to_divide_by(name: str, scores: list[float]) -> None:
    assert np.isfinite(normaliser_by_name(name)(np.array(scores))).all()


@pytest.mark.parametrize("name", NORMALISERS)
def test_order_in_a_group_stays(name: str) -> None:
    scores = np.random.default_rng(0).random(50)
    np.testing.assert_array_equal(removal_order(normaliser_by_name(name)(scores)), removal_order(scores))


def test_lamp_does_not_depend_on_position() -> None:
    scores = np.random.default_rng(0).random(20)
    order = np.random.default_rng(1).permutation(20)
    lamp = normaliser_by_name("lamp")
    np.testing.assert_allclose(lamp(scores[order]), lamp(scores)[order], rtol=1e-12)


def test_ties_lose_the_highest_index() -> None:
    assert removal_order(np.array([1.0, 0.0, 1.0, 0.0])).tolist() == [3, 1, 2, 0]


def test_unknown() -> None:
    with pytest.raises(CriterionError, match="choose one of none, mean"):
        normaliser_by_name("l3")
