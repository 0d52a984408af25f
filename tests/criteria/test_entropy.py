"""Feature-map entropy and the parallel method, on the numbers worked by hand in the description of the method."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch

from fxprune.analysis.groups import Group
from fxprune.axes.expressions import Channels, Origin
from fxprune.criteria import FeatureEntropy
from fxprune.criteria.combining import fewer_kept, threshold_masks
from fxprune.criteria.features import histogram_entropy, normalised_entropies, spatial_entropy
from fxprune.errors import CriterionError

MAPS = {
    "constant": [2.0, 2, 2, 2],
    "peak": [0.0, 0, 0, 4],
    "ramp": [0.0, 1, 2, 3],
    "half": [0.0, 0, 1, 1],
    "checker": [1.0, -1, -1, 1],
}
EXPECTED = {
    "constant": (math.log(4), math.log(4), 0.0),
    "peak": (0.009049, 0.261830, 0.562335),
    "ramp": (1.058481, 0.947537, 1.386294),
    "half": (1.386294, 1.275350, 0.693147),
    "checker": (1.386294, 1.058481, 0.693147),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_worked_entropies(name: str, dtype: torch.dtype) -> None:
    values = torch.tensor(MAPS[name], dtype=dtype)
    found = [spatial_entropy(values), spatial_entropy(values, squared=False), histogram_entropy(values, bins=4)]
    assert [float(v) for v in found] == pytest.approx(EXPECTED[name], abs=2e-6)


def test_invariances() -> None:
    maps = torch.randn(3, 5, 20, dtype=torch.float64)
    squared, plain = spatial_entropy(maps), spatial_entropy(maps, squared=False)
    torch.testing.assert_close(spatial_entropy(maps + 7), squared)
    torch.testing.assert_close(spatial_entropy(-maps), squared)
    torch.testing.assert_close(spatial_entropy(maps + 7, squared=False), plain)
    assert not torch.allclose(spatial_entropy(-maps, squared=False), plain)
    for form in (True, False):
        assert not torch.allclose(spatial_entropy(2 * maps, squared=form), spatial_entropy(maps, squared=form))
        assert bool((spatial_entropy(maps, squared=form) <= math.log(20) + 1e-9).all())
    torch.testing.assert_close(histogram_entropy(3 * maps + 1), histogram_entropy(maps))


def test_histograms_over_one_range_tell_scales_apart() -> None:
    """Bins 0..1, 1..2, 2..3, 3..4: the ramp takes all four, the half-sized one two, the constant one."""
    maps = torch.tensor([[0.0, 1, 2, 4], [0.0, 0.5, 1, 1.5], [3.0, 3, 3, 3]])
    expected = [math.log(4), math.log(2), 0.0]
    assert histogram_entropy(maps, bins=4, together=True).tolist() == pytest.approx(expected)
    assert histogram_entropy(maps, bins=4)[:2].tolist() != pytest.approx(expected[:2])
    layers = torch.stack([maps, 2 * maps]).reshape(2, 3, 2, 2)
    for form, scaled in (("layer", expected), ("map", histogram_entropy(maps, bins=4).tolist())):
        found = FeatureEntropy("histogram", bins=4, value_range=form).measure(layers)
        assert found.tolist() == [pytest.approx(scaled)] * 2  # each sample has its own range


@pytest.mark.parametrize("scale", [1, 0.1, 0.01])
def test_small_maps_are_ranked_like_exact_ones(scale: float) -> None:
    """A map whose values all lie near zero has an entropy just below ln n: ranked by fractions of 50 digits."""
    maps = scale * torch.randn(12, 16, generator=torch.Generator().manual_seed(0))
    with localcontext() as context:
        context.prec = 50
        exact = [-float(_shortfall(row)) for row in maps.tolist()]
    found = FeatureEntropy().measure(maps.reshape(1, 12, 4, 4))[0]
    assert np.argsort(found.numpy()).tolist() == np.argsort(exact).tolist()


def _shortfall(values: list[float]) -> Decimal:
    """How far the entropy of the softmax of squared deviations lies below ln n."""
    exact = [Decimal(v) for v in values]
    mean = sum(exact) / len(exact)
    weights = [((v - mean) ** 2).exp() for v in exact]
    shares = [w / sum(weights) for w in weights]
    return sum((p * (p * len(shares)).ln() for p in shares), Decimal(0))


def test_large_values_stay_finite() -> None:
    maps = torch.tensor([[0.0, 1e6, -1e6, 3.0], [1e15, 0.0, 0.0, 0.0]])
    assert torch.isfinite(spatial_entropy(maps)).all()
    assert torch.isfinite(spatial_entropy(maps, squared=False)).all()


LAYERS = [np.array([3.0, 1, 2]), np.array([10.0, 40, 20, 30])]


def test_worked_normalisations() -> None:
    np.testing.assert_allclose(normalised_entropies(LAYERS[0], "minmax"), [1, 0, 0.5])
    np.testing.assert_allclose(normalised_entropies(LAYERS[1], "minmax"), [0, 1, 1 / 3, 2 / 3])
    np.testing.assert_allclose(normalised_entropies(LAYERS[0], "variance"), [1.5, -1.5, 0])
    np.testing.assert_allclose(normalised_entropies(LAYERS[1], "variance"), [-0.12, 0.12, -0.04, 0.04])
    for form in ("minmax", "variance"):
        np.testing.assert_array_equal(normalised_entropies(np.full(3, 0.7), form), [0.5, 0.5, 0.5])


def groups(*sizes: int) -> list[Group]:
    return [Group(f"g{i}", Channels(n, Origin("t", i)), n, ()) for i, n in enumerate(sizes)]


def masks(layers: list[np.ndarray], percent: float) -> list[list[int]]:
    found = groups(*map(len, layers))
    total = sum(map(len, layers))
    kept = threshold_masks(dict(zip(found, layers, strict=True)), int(total * percent))
    return [kept[g].astype(int).tolist() for g in found]


def test_worked_entropy_masks() -> None:
    scores = [-normalised_entropies(e, "minmax") for e in LAYERS]
    assert masks(scores, 0.0) == [[0, 1, 1], [1, 0, 1, 1]]
    assert masks(scores, 0.3) == [[0, 1, 1], [1, 0, 1, 0]]
    assert masks(scores, 0.5) == [[0, 1, 0], [1, 0, 1, 0]]


def test_worked_slimming_masks() -> None:
    assert masks([np.array([0.9, 0.1, 0.5]), np.array([0.2, 0.8, 0.3, 0.05])], 0.3) == [[1, 0, 1], [0, 1, 1, 0]]


def test_the_mask_that_keeps_fewer() -> None:
    few, many, none = (np.array(m, dtype=bool) for m in ([1, 0, 0], [0, 1, 1], [0, 0, 0]))
    assert fewer_kept(few, many) is few
    assert fewer_kept(many, few) is few
    assert fewer_kept(none, many) is many
    assert fewer_kept(many, none) is many
    other = np.array([0, 1, 0], dtype=bool)
    assert fewer_kept(few, other) is other  # slimming is the second


@pytest.mark.parametrize(
    "options",
    [{"estimator": "x"}, {"transform": "x"}, {"normalize": "zscore"}, {"bins": 1}, {"tap": "x"}, {"value_range": "x"}],
)
def test_unknown_arguments(options: dict[str, object]) -> None:
    with pytest.raises(CriterionError):
        FeatureEntropy(**options)  # type: ignore[arg-type]
