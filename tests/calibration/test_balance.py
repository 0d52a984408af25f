"""Weights of positions, so that rare classes count: against frequencies and least squares worked out with numpy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.calibration import Calibration, Collector, Observation
from fxprune.calibration.balance import Balance, Census, Weights, divergence, resized
from fxprune.calibration.batches import Batch
from fxprune.calibration.statistic import Tap
from fxprune.capture.samples import Sample
from fxprune.criteria.reconstruction import _Variance
from fxprune.recovery import Reconstruct


def counted(*outputs: Tensor) -> tuple[Balance | None, Batch]:
    """The balance of one batch for which a network gives these outputs, and the batch."""
    batch = Batch(Sample((torch.arange(float(len(outputs[0]))).unsqueeze(1),), {}), None, len(outputs[0]))
    census = Census()
    census.add(batch, outputs)
    return census.balance(), batch


def weights_of(*outputs: Tensor) -> Weights:
    balance, batch = counted(*outputs)
    assert balance is not None
    found = balance.of(batch)
    assert found is not None
    return found


def test_each_class_counts_at_least_its_equal_share() -> None:
    kinds = np.random.default_rng(0).choice(4, size=(10, 8, 8), p=[0.88, 0.06, 0.04, 0.02])
    logits = 50 * nn.functional.one_hot(torch.from_numpy(kinds), 4).movedim(-1, 1).float()
    (weights,) = weights_of(logits).maps
    counts = np.bincount(kinds.reshape(-1), minlength=4)
    wanted = np.maximum(1, kinds.size / 4 / counts)[kinds]
    np.testing.assert_allclose(weights.numpy(), wanted, rtol=1e-3)
    assert min(float(weights[torch.from_numpy(kinds == kind)].sum()) for kind in range(4)) > 0.99 * kinds.size / 4


@pytest.mark.parametrize(
    "output",
    [
        torch.randn(4000, 10) * 5,  # classes of about the same frequency
        torch.randn(10, 3, 16, 16) * 0.2 + 0.5,  # the colours of pixels, which are no classes
        torch.randn(2, 8, 1000),  # more classes than positions
        torch.randn(50),  # one number for each sample
    ],
)
def test_positions_count_alike_where_no_class_is_rare(output: Tensor) -> None:
    assert counted(output)[0] is None


def test_one_channel_is_the_logit_of_two_classes() -> None:
    logits = torch.full((8, 1, 10, 10), -20.0)
    logits[:, :, 0, 0] = 20.0
    (weights,) = weights_of(logits).maps
    assert float(weights[0, 0, 0]) == pytest.approx(32)  # 50, but for the limit
    assert float(weights[0, 1, 1]) == pytest.approx(1)


def test_a_map_is_averaged_to_the_positions_of_other_layers() -> None:
    grid = torch.rand(3, 8, 6)
    halved = grid.reshape(3, 4, 2, 3, 2).mean((2, 4))
    torch.testing.assert_close(resized(grid, (4, 3)), halved)
    torch.testing.assert_close(resized(grid, (12,)), halved.flatten(1))
    torch.testing.assert_close(resized(grid, (5,)), grid.mean((1, 2)).unsqueeze(1).expand(3, 5))
    torch.testing.assert_close(resized(grid, ()), grid.mean((1, 2)))


def test_the_divergence_is_that_of_the_predictions() -> None:
    one, other, each = torch.randn(3, 4, 5, 5), torch.randn(3, 4, 5, 5), torch.rand(3, 1, 5, 5)
    p, q = (np.exp(z.double().numpy()) for z in (other, one))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    wanted = (p * np.log(p / q)).sum(1)
    assert float(divergence(one, other, 1, None)) == pytest.approx(wanted.mean(), rel=1e-4)
    weighted = (wanted * each[:, 0].numpy()).mean()
    assert float(divergence(one, other, 1, each)) == pytest.approx(weighted, rel=1e-4)


class Pixels(nn.Module):
    """Three classes of each pixel, from three features: that of a common class, that of a rare class, which is large at
    one pixel in a hundred, and one that adds a little everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(3).reshape(3, 3, 1, 1))
            self.second.weight.copy_(torch.tensor([[0, 0, 0], [6.0, 0, 1.5], [0, 9.0, 0]]).reshape(3, 3, 1, 1))
            self.first.bias.zero_()
            self.second.bias.copy_(torch.tensor([3.0, 0, 0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def pixels(samples: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 3, 10, 10, generator=draw)
    x[:, 1] = nn.functional.one_hot(torch.randint(100, (samples,), generator=draw), 100).reshape(-1, 10, 10)
    return x


def kept(x: Tensor) -> list[int]:
    plan = fxprune.plan(
        Pixels().eval(), x[:2], 1 / 3, budget="channels", criterion="reconstruction", calibration=[x], round_to=1
    )
    return plan.keep["first.weight"][0].tolist()


def test_the_channel_of_a_rare_class_survives(monkeypatch: pytest.MonkeyPatch) -> None:
    x = pixels(256)
    assert kept(x) == [0, 1]
    # Over all pixels alike, what it adds is less than what the third channel adds: 81 x 0.01 x 0.99 against 2.25.
    monkeypatch.setattr(Census, "balance", lambda self: None)
    assert kept(x) == [0, 2]


class Passes(list[Tensor]):
    """Batches that count how often they are read."""

    count = 0

    def __iter__(self) -> Iterator[Tensor]:
        self.count += 1
        return super().__iter__()


def test_the_data_are_read_a_second_time_only_where_a_class_is_rare() -> None:
    kinds = torch.randint(3, (256, 10, 10), generator=torch.Generator().manual_seed(0))
    common = torch.stack([2.0 * (kinds == 1), 1.0 * (kinds == 2), 0.0 * kinds], 1)  # each class is as frequent
    for x, passes in ((common.double(), 1), (pixels(256).double(), 2)):
        batches = Passes([x[:100], x[100:]])
        model, count = Pixels().double().eval(), x.shape[0] * 100
        graph = fxprune.analyze(model, x[:2])
        statistic = _Variance(1, 3)
        (node,) = (node for node in graph.calls if node.name == "second")
        collector = Collector(graph, model, Calibration(batches, Sample.from_input(x[:2])))
        collector.collect([Observation(Tap(node), statistic)])
        assert batches.count == passes

        with torch.no_grad():
            outputs = model(x).movedim(1, -1).reshape(-1, 3).numpy()
        each = np.ones(count)
        if passes == 2:
            shares = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
            factors = np.clip(shares.mean(0).mean() / shares.mean(0), 1, 32)
            each += shares.max(1) * (factors[shares.argmax(1)] - 1)
        mean = np.average(outputs, axis=0, weights=each)
        wanted = np.average((outputs - mean) ** 2, axis=0, weights=each).sum()
        assert statistic.mean() == pytest.approx(wanted, rel=1e-3)


def test_a_layer_is_fitted_with_the_weights_of_its_positions() -> None:
    model, x = Pixels().double().eval(), pixels(256).double()
    x[:, 2] += 2 * x[:, 1] + x[:, 0].square()
    plan = fxprune.plan(model, x[:2], 1 / 3, budget="channels", criterion="magnitude", round_to=1)
    left = plan.keep["first.weight"][0].tolist()
    cut = fxprune.apply(model, x[:2], plan)
    fit = Reconstruct(ridge=0.0, positions=100, hold_out=False)
    back = fxprune.recover(cut, model, fit, calibration=[x[:90], x[90:]])

    with torch.no_grad():
        outputs = model(x).double().movedim(1, -1).reshape(-1, 3).numpy()
    shares = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    factors = np.clip(shares.mean(0).mean() / shares.mean(0), 1, 32)
    each = 1 + shares.max(1) * (factors[shares.argmax(1)] - 1)
    features = x.double().movedim(1, -1).reshape(-1, 3).numpy()[:, left]
    rows = np.sqrt(each)[:, None] * np.hstack([features, np.ones((len(features), 1))])
    wanted = np.linalg.lstsq(rows, np.sqrt(each)[:, None] * outputs, rcond=None)[0]
    np.testing.assert_allclose(back.second.weight.detach().flatten(1).numpy(), wanted[:-1].T, atol=1e-4)
    np.testing.assert_allclose(back.second.bias.detach().numpy(), wanted[-1], atol=1e-4)
    alike = np.linalg.lstsq(np.hstack([features, np.ones((len(features), 1))]), outputs, rcond=None)[0]
    assert np.abs(alike - wanted).max() > 0.05


def test_outputs_of_changing_sizes_are_not_weighted() -> None:
    census = Census()
    for count, classes in ((40, 3), (40, 5)):
        batch = Batch(Sample((torch.randn(count, 2),), {}), None, count)
        census.add(batch, torch.tensor([20.0, *[0.0] * (classes - 1)]).repeat(count, 1))
    assert census.balance() is None
    assert counted(torch.full((200, 3), torch.nan))[0] is None
