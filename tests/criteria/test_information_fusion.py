"""Information fusion: worked distributions, importances and fused filters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fxprune.criteria import FPGM, InformationFusion, fused_filters, temperature_at
from fxprune.criteria.information_fusion import divergence_importance, log_similarity_distributions
from fxprune.criteria.rows import distances
from fxprune.errors import CriterionError

FILTERS = torch.tensor([[1.0, 0], [1, 0], [0, 1], [-2, 0]], dtype=torch.float64)


def importance(filters: torch.Tensor, temperature: float = 1.0) -> np.ndarray:
    return divergence_importance(log_similarity_distributions(filters, temperature)).numpy()


def test_worked_distributions() -> None:
    shares = log_similarity_distributions(FILTERS).exp()
    twins = [0.436128, 0.436128, 0.106030, 0.021714]
    expected = [twins, twins, [0.152605, 0.152605, 0.627702, 0.067088], [0.041267, 0.041267, 0.088589, 0.828877]]
    np.testing.assert_allclose(shares.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(shares.sum(1).numpy(), np.ones(4))
    entropies = torch.special.entr(shares).sum(1)
    np.testing.assert_allclose(entropies.numpy(), [1.044909, 1.044909, 1.047333, 0.633378], atol=1e-6)
    sharp = log_similarity_distributions(FILTERS, 1e4).exp()
    np.testing.assert_allclose(
        sharp.numpy(), [[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], atol=1e-9
    )


def test_worked_importances() -> None:
    np.testing.assert_allclose(importance(FILTERS), [0.674881, 0.674881, 0.800618, 1.854791], atol=1e-5)
    np.testing.assert_allclose(importance(FILTERS, 100), [110.00877, 110.00877, 126.95895, 206.24827], atol=1e-4)


def test_worked_fusion() -> None:
    fused = fused_filters(FILTERS, [0, 2, 3])
    expected = [[0.828829, 0.106030], [0.171035, 0.627702], [-1.575219, 0.088589]]
    np.testing.assert_allclose(fused.numpy(), expected, atol=1e-6)


def test_divergences_written_out() -> None:
    logs = log_similarity_distributions(torch.randn(7, 5, dtype=torch.float64))
    divergence = (logs.exp()[:, None] * (logs[:, None] - logs[None])).sum(2) / 7
    assert bool((divergence >= -1e-12).all())
    torch.testing.assert_close(divergence.sum(1), divergence_importance(logs))
    assert float(divergence.diagonal().abs().max()) == 0


def test_high_temperatures_give_the_order_of_the_geometric_median() -> None:
    filters = torch.randn(20, 8, dtype=torch.float64)
    np.testing.assert_array_equal(np.argsort(importance(filters, 1e3)), np.argsort(distances(filters).sum(1).numpy()))
    assert FPGM().name == "fpgm"


def test_permutation() -> None:
    filters, order = torch.randn(9, 4, dtype=torch.float64), torch.randperm(9)
    np.testing.assert_allclose(importance(filters[order]), importance(filters)[order.numpy()], rtol=1e-12)


def test_fused_filters_at_the_ends() -> None:
    weight = torch.randn(6, 3, 2, 2)
    torch.testing.assert_close(fused_filters(weight, [1, 4], beta=0), weight[[1, 4]])
    torch.testing.assert_close(fused_filters(weight, range(6), temperature=1e6), weight)
    residual = fused_filters(weight, [1, 4], fusion="residual", beta=0.5)
    shares = log_similarity_distributions(weight.double().flatten(1)).exp()
    gone = [0, 2, 3, 5]
    expected = weight[1].double() + 0.5 * (shares[1, gone] @ weight.double().flatten(1)[gone]).reshape(3, 2, 2)
    torch.testing.assert_close(residual[0].double(), expected, atol=1e-6, rtol=1e-6)
    coupled = torch.cat([weight.flatten(1), torch.randn(6, 5)], 1)
    by_both = fused_filters(weight, [1, 4], compared=coupled)
    shares = log_similarity_distributions(coupled.double()).exp()
    torch.testing.assert_close(
        by_both.flatten(1).double(), (shares @ weight.double().flatten(1))[[1, 4]], atol=1e-6, rtol=1e-6
    )


def test_temperatures() -> None:
    found = [temperature_at(epoch, 300) for epoch in (0, 1, 5, 10)]
    assert found == pytest.approx([1, 4621.7, 9866.2, 9999.1], abs=0.06)
    assert temperature_at(300, 300) == pytest.approx(10000)


def test_unknown_arguments() -> None:
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(CriterionError):
            InformationFusion(temperature=wrong)
    with pytest.raises(CriterionError):
        fused_filters(FILTERS, [0], fusion="mix")
