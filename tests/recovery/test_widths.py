"""Elimination against fits with the features left, and widths that follow from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxprune
from fxprune.calibration import Calibration, Collector
from fxprune.calibration.effects import OutputErrors
from fxprune.calibration.least_squares import Elimination
from fxprune.capture.samples import Sample
from fxprune.criteria import Reconstruction, judge
from tests.criteria.calibrated import Small, batches, images, scores
from tests.recovery.test_readers import Upwards, design
from tests.recovery.test_reconstruct import Lines


def test_the_cost_of_elimination_is_the_residual_of_a_fit_with_the_rest() -> None:
    x = torch.randn(200, 8, dtype=torch.float64) @ torch.randn(8, 8, dtype=torch.float64)
    x = x - x.mean(0)
    weight = torch.randn(3, 8, dtype=torch.float64)
    blocks = torch.arange(8).reshape(4, 2)
    found = Elimination(x.T @ x, weight, blocks, ridge=0.0)
    total, left = 0.0, list(range(4))
    for unit in (2, 0, 3):
        expected = float(found.costs()[unit])
        added = found.remove([unit])
        assert np.isclose(added, expected)
        total += added
        left.remove(unit)
        rest = x[:, blocks[left].reshape(-1)]
        wanted = x @ weight.T
        residual = wanted - rest @ torch.linalg.lstsq(rest, wanted).solution
        assert np.isclose(total, float(residual.square().sum()), rtol=1e-6)
    together = Elimination(x.T @ x, weight, blocks, ridge=0.0).remove([2, 0, 3])
    assert np.isclose(together, total)


class Wide(nn.Module):
    """The first hidden layer has four channels too many, the second none."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = Lines()
        self.inner, self.last = nn.Linear(3, 8).double(), nn.Linear(8, 8).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.inner(self.lines(x))))


def test_channels_are_removed_where_the_rest_can_replace_them() -> None:
    model = Wide()
    x = torch.randn(256, 5, dtype=torch.float64)
    options = {"budget": "channels", "criterion": "random", "exclude": ["lines.second"]}
    plan = fxprune.plan(model, x[:2], 4 / 19, scope="reconstruction", calibration=[x], **options)
    kept = {name: len(units) for name, units in plan.groups.items()}
    assert kept["lines.first"] == 4
    assert kept["inner"] == 8
    assert plan.settings["scope"] == "reconstruction"


def test_the_criterion_finds_the_redundant_channels() -> None:
    torch.manual_seed(3)
    model = Lines()
    with torch.no_grad():
        model.first.weight[1], model.first.bias[1] = model.first.weight[0], model.first.bias[0]
    x = torch.randn(256, 5, dtype=torch.float64)
    pruned = fxprune.compile(
        model, x[:2], 0.5, budget="channels", criterion="reconstruction", calibration=[x], recover="reconstruct"
    )
    error = (pruned(x) - model(x)).square().mean() / model(x).var()
    assert error < 1e-6


def test_streams_convolutions_and_flattened_maps_are_judged() -> None:
    model = Small()
    found = scores(Reconstruction(), model)
    assert all(np.ptp(values) > 0 for values in found.values())
    x, _ = images(12)
    pruned = fxprune.compile(model, x[:2], 0.4, scope="reconstruction", calibration=batches(), recover="reconstruct")
    report = fxprune.report(pruned)
    assert report.achieved >= 0.4
    assert report.proof is not None
    assert report.recovery[0].left == {}


class Sequences(nn.Module):
    """A wide hidden layer over positions, beside a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.last = nn.Linear(5, 6), nn.Linear(6, 96), nn.Linear(96, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stream = self.stem(x)
        return stream + self.last(torch.tanh(self.inner(stream)))


def _sequences() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return Sequences().double(), torch.randn(16, 64, 5, dtype=torch.float64)


def _scores(criterion: Reconstruction, model: nn.Module, x: torch.Tensor) -> dict[str, np.ndarray]:
    graph, data = fxprune.analyze(model, x[:2]), Calibration([x], Sample.from_input(x[:2]))
    found = judge(criterion, graph, dict(model.state_dict()), Collector(graph, model, data))
    assert isinstance(found, dict)
    return {group.name: values for group, values in found.items()}


def test_scores_of_a_wide_group_add_up_to_the_residual_of_a_fit_without_its_channels() -> None:
    model, x = _sequences()
    found = _scores(Reconstruction(ridge=0.0, positions=64, curvature=False), model, x)["inner"]
    with torch.no_grad():
        hidden, wanted = (value.flatten(0, 1) for value in (torch.tanh(model.inner(model.stem(x))), model(x)))
        written = hidden @ model.last.weight.T
    hidden, written, wanted = (value - value.mean(0) for value in (hidden, written, wanted))
    gone = np.argsort(found)[:40]
    rest = hidden[:, np.setdiff1d(np.arange(96), gone)]
    residual = written - rest @ torch.linalg.lstsq(rest, written).solution
    # No score is below that of a unit that goes before, so the sum may be a little more.
    assert 0.999 < found[gone].sum() / float(residual.square().sum() / wanted.square().sum()) < 1.15


def test_a_wide_layer_is_judged_by_enough_positions() -> None:
    model, x = _sequences()
    few = _scores(Reconstruction(positions=1), model, x)["inner"]
    # Eight rows for each of 96 features are 48 of the 64 positions of 16 samples.
    assert np.array_equal(few, _scores(Reconstruction(positions=48), model, x)["inner"])
    assert not np.array_equal(few, _scores(Reconstruction(positions=64), model, x)["inner"])


def test_groups_that_lose_nothing_are_not_looked_at() -> None:
    model, x = _sequences()
    options = {"criterion": "reconstruction", "calibration": [x], "budget": "channels"}
    whole = fxprune.plan(model, x[:2], {"inner": 0.5}, **options)
    inner = fxprune.plan(model, x[:2], 24 / 102, residual="inner", **options)
    assert {n: len(u) for n, u in whole.groups.items()} == {"inner": 48}
    assert {n: len(u) for n, u in inner.groups.items()} == {"inner": 72}
    assert set(whole.groups["inner"]) < set(inner.groups["inner"])


class Deaf(nn.Module):
    """A head that reads half of the channels of a layer over tokens. Two neurons of four write to those it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 5)
        self.last.weight.data = torch.diag(torch.tensor([1.0, 1.0, 2.0, 2.0]))
        self.head.weight.data[:, 2:] = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.last(torch.tanh(self.inner(x))))


def test_errors_of_tokens_count_as_they_change_the_predictions() -> None:
    torch.manual_seed(0)
    model, x = Deaf(), torch.randn(16, 8, 4)
    model.inner.weight.data = torch.eye(4)
    found = [_scores(Reconstruction(), model, data)["inner"] for data in (x, x.flatten(0, 1))]
    assert set(np.argsort(found[0])[:2]) == {2, 3}  # large, but unheard
    assert set(np.argsort(found[1])[:2]) == {0, 1}  # rows that are no tokens are compared as they are


class Louder(nn.Module):
    """The same layers twice; what the second ones give counts thrice."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far = (nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)).double() for _ in range(2))
        self.far.load_state_dict(self.near.state_dict())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.near(x) + 3 * self.far(x)


def test_errors_of_tokens_in_several_groups_are_divergences_of_the_same_predictions() -> None:
    """Three times as large an error is nine times the divergence, whatever the variance of the sum it goes into."""
    torch.manual_seed(0)
    found = _scores(Reconstruction(), Louder(), torch.randn(32, 8, 4, dtype=torch.float64))
    assert np.allclose(found["near.0"] * 9, found["far.0"], rtol=1e-6)


class Halves(nn.Module):
    """The same network twice, the second times a hundred."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far = (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double() for _ in range(2))
        self.far.load_state_dict(self.near.state_dict())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.near(x), 100 * self.far(x)], dim=1)


def test_groups_are_weighed_by_the_outputs() -> None:
    """Errors a hundred times as large count ten thousand times as much, squared as they are."""
    model, x = Halves(), torch.randn(64, 4, dtype=torch.float64)
    alike = _scores(Reconstruction(weigh=False), model, x)
    assert np.allclose(alike["near.0"], alike["far.0"])
    weighed = _scores(Reconstruction(), model, x)
    assert np.allclose(weighed["near.0"] * 1e4, weighed["far.0"])
    widths = fxprune.plan(model, x[:2], 0.4, calibration=list(x.split(16)), round_to=1).groups
    assert len(widths["near.0"]) < len(widths["far.0"]) == 6


def test_output_errors_are_those_of_the_network_with_other_tensors() -> None:
    model, x = Halves(), torch.randn(20, 4, dtype=torch.float64)
    errors = [_output_errors(model, list(x.split(size)), 64) for size in (20, 7)]
    before = model(x).detach()
    with torch.no_grad():
        model.near[2].weight.zero_()
    expected = float((model(x).detach() - before).square().sum() / before.square().sum())
    assert np.allclose(errors, expected)
    assert _output_errors(model, [x], 5) == _output_errors(model, list(x.split(3)), 5)


def _output_errors(model: nn.Module, data: list[torch.Tensor], samples: int) -> float:
    graph = fxprune.analyze(model, data[0])
    collector = Collector(graph, model, Calibration(data, Sample.from_input(data[0])))
    return OutputErrors(collector, samples).of({"near.2.weight": torch.zeros(3, 6)})


@pytest.mark.parametrize(
    "options",
    [{"stride": 2, "kernel_size": 2}, {"stride": (2, 3), "padding": (0, 2), "output_padding": (1, 0), "dilation": 2}],
)
def test_scores_of_channels_that_a_transposed_convolution_reads_add_up_to_the_residual_of_a_fit(
    options: dict[str, object],
) -> None:
    torch.manual_seed(0)
    model, x = Upwards(**options), torch.randn(12, 3, 4, 5, dtype=torch.float64)
    found = _scores(Reconstruction(ridge=0.0, positions=1000), model, x)["first"]
    gone = np.argsort(found)[:3]
    with torch.no_grad():
        wanted, hidden = model(x), F.relu(model.first(x))
        left = np.setdiff1d(np.arange(6), gone)
        model.second.weight = torch.nn.Parameter(model.second.weight[left])
        matrix = design(model.second, hidden[:, left])
        residual = wanted.reshape(-1) - matrix @ torch.linalg.lstsq(matrix, wanted.reshape(-1)).solution
        spread = (wanted - wanted.mean((0, 2, 3), keepdim=True)).square().sum()
    assert np.isclose(found[gone].sum(), float(residual.square().sum() / spread), rtol=1e-5)
