"""Filter similarity: the worked example, the failure that updates prevent, and invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fxprune.criteria import FilterSimilarity
from fxprune.criteria.information_fusion import pair_removals, similarities, standardised
from fxprune.errors import CriterionError

FILTERS = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0.6, 0.8, 0]])


def victims(filters: Tensor, fewest: int = 1, metric: str = "cosine") -> list[int]:
    similar = similarities(filters, metric)
    return [removal[-1] for removal in pair_removals(similar, standardised(similar), fewest)]


def test_worked_similarities() -> None:
    similar = similarities(FILTERS)
    np.testing.assert_allclose(similar[np.triu_indices(4, 1)], [1, 0, 0.6, 0, 0.6, 0.8], atol=1e-7)
    pairs = similar[np.triu_indices(4, 1)]
    assert (pairs.mean(), pairs.std()) == pytest.approx((0.5, 0.378594), abs=1e-6)
    assert standardised(similar)[0, 1] == pytest.approx(0.5 / 0.378594, abs=1e-5)


def test_worked_removals() -> None:
    assert victims(FILTERS) == [1, 3, 2]
    row_mean = (similarities(FILTERS).sum(1) - 1) / 3
    np.testing.assert_allclose(row_mean, [0.533, 0.533, 0.267, 0.667], atol=1e-3)


def test_of_two_equal_filters_one_goes_first() -> None:
    filters = torch.randn(12, 30, generator=torch.Generator().manual_seed(0))
    filters[7] = filters[3]
    order = victims(filters)
    assert order[0] in (3, 7)
    assert order.index(3 if order[0] == 7 else 7) > 1 if 3 in order and 7 in order else True


def test_scale() -> None:
    filters = torch.randn(8, 20, dtype=torch.float64)
    scaled = filters * torch.rand(8, 1, dtype=torch.float64).add(0.5)
    np.testing.assert_allclose(similarities(scaled), similarities(filters), atol=1e-10)
    assert not np.allclose(similarities(scaled, "euclidean"), similarities(filters, "euclidean"))
    np.testing.assert_allclose(similarities(-filters, "absolute"), similarities(filters, "absolute"), atol=1e-10)


def test_dead_filters_are_redundant() -> None:
    filters = torch.randn(5, 6)
    filters[2] = 0
    assert victims(filters)[0] == 2


def test_no_spread() -> None:
    np.testing.assert_array_equal(
        standardised(similarities(torch.eye(3))), [[np.inf, 0, 0], [0, np.inf, 0], [0, 0, np.inf]]
    )
    assert victims(torch.ones(3, 4)) == [1, 2]


def test_as_many_stay_as_are_asked_for() -> None:
    assert len(victims(torch.randn(40, 8), fewest=2)) == 38
    assert victims(torch.randn(1, 8)) == []


def test_permuted_filters_go_in_the_permuted_order() -> None:
    filters = torch.randn(30, 12, dtype=torch.float64)
    order = torch.randperm(30)
    assert [int(order[v]) for v in victims(filters[order])] == victims(filters)


@pytest.mark.parametrize("options", [{"metric": "l1"}, {"normalize": "mean"}, {"keep_share": 2.0}])
def test_unknown_arguments(options: dict[str, object]) -> None:
    with pytest.raises(CriterionError):
        FilterSimilarity(**options)  # type: ignore[arg-type]
