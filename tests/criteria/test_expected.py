"""The expected criteria against their formulas written out on whole tensors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fxprune
from fxprune.calibration import Calibration, Collector
from fxprune.capture.samples import Sample
from fxprune.criteria import (
    CHIP,
    FPGM,
    APoZ,
    FeatureEntropy,
    Hessian,
    HRank,
    InformationFusion,
    Lamp,
    Magnitude,
    MeanActivation,
    Slimming,
    Taylor,
    ThiNet,
    WeightedSum,
    judge,
)
from fxprune.criteria.features import nuclear_norm_changes
from fxprune.criteria.thinet import greedy_errors
from fxprune.errors import CriterionError
from tests.criteria.calibrated import Batches, Small, batches, images, scores


def test_fpgm() -> None:
    model = Small()
    found = scores(FPGM("none"), model)
    rows = model.conv1.weight.detach().flatten(1)
    np.testing.assert_allclose(found["conv1"], torch.cdist(rows, rows).sum(1).numpy(), rtol=1e-9)
    coupled = torch.cat([model.stem.weight.detach().flatten(1), model.conv2.weight.detach().flatten(1)], 1)
    np.testing.assert_allclose(found["stem"], torch.cdist(coupled, coupled).sum(1).numpy(), rtol=1e-9)


def test_slimming() -> None:
    model = Small()
    with torch.no_grad():
        model.bn1.weight[3] *= -1
    found = scores(Slimming(), model)
    np.testing.assert_allclose(found["conv1"], model.bn1.weight.detach().abs().numpy())
    both = (model.bn0.weight.detach().abs() + model.bn2.weight.detach().abs()) / 2
    np.testing.assert_allclose(found["stem"], both.numpy())
    # A group without batch norm is cut last.
    assert (found["last"] == max(found["conv1"].max(), found["stem"].max())).all()


def test_lamp() -> None:
    model = Small()
    energy = np.sort(model.conv1.weight.detach().flatten(1).square().sum(1).numpy())
    expected = energy / np.cumsum(energy[::-1])[::-1]
    np.testing.assert_allclose(np.sort(scores(Lamp("producer"), model)["conv1"]), expected, rtol=1e-9)


def maps_of(model: Small, x: Tensor) -> dict[str, Tensor]:
    """After the activation."""
    with torch.no_grad():
        stem = F.relu(model.bn0(model.stem(x)))
        inner = F.relu(model.bn1(model.conv1(stem)))
        stream = F.relu(stem + model.bn2(model.conv2(inner)))
        return {"stem": stream, "conv1": inner, "last": F.relu(model.last(stream))}


@pytest.mark.parametrize("group", ["stem", "conv1", "last"])
def test_activity(group: str) -> None:
    model, (x, _) = Small(), images()
    maps = maps_of(model, x)[group]
    np.testing.assert_allclose(scores(APoZ(), model)[group], (maps > 0).double().mean((0, 2, 3)).numpy())
    found = scores(MeanActivation(tap="activated", normalise="none"), model)[group]
    np.testing.assert_allclose(found, maps.abs().mean((0, 2, 3)).numpy())


def test_hrank() -> None:
    model, (x, _) = Small(), images()
    ranks = [[np.linalg.matrix_rank(m) for m in sample] for sample in maps_of(model, x)["conv1"].numpy()]
    np.testing.assert_allclose(scores(HRank(normalise="none"), model)["conv1"], np.mean(ranks, axis=0))


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (1, 4), (40, 90), (60, 25), (7, 7), (3, 1)])
@pytest.mark.parametrize("special", [False, True])
def test_nuclear_norm_changes(shape: tuple[int, int], special: bool) -> None:
    rows = torch.randn(shape, dtype=torch.float64)
    if special:
        # Rectified, with a row of zeros and twins: the rank is not full.
        rows = rows.relu()
        rows[0] = 0
        rows[-1] = rows[shape[0] // 2]
    whole = torch.linalg.matrix_norm(rows, "nuc")
    expected = []
    for i in range(shape[0]):
        zeroed = rows.clone()
        zeroed[i] = 0
        expected.append(float(whole - torch.linalg.matrix_norm(zeroed, "nuc")))
    np.testing.assert_allclose(nuclear_norm_changes(rows).numpy(), expected, rtol=1e-7, atol=3e-7)


def test_chip() -> None:
    model, (x, _) = Small(), images()
    rows = maps_of(model, x)["conv1"].flatten(2).round(decimals=4)
    expected = torch.stack([nuclear_norm_changes(sample) for sample in rows]).mean(0)
    np.testing.assert_allclose(scores(CHIP(normalise="none"), model)["conv1"], expected.numpy(), rtol=1e-9)


def loss_of(model: Small, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def products(parameter: Tensor, dim: int, units: int) -> Tensor:
    """Gradient times weight, one row for each channel."""
    assert parameter.grad is not None
    return (parameter.grad * parameter.detach()).movedim(dim, 0).reshape(units, -1)


def taylor_sums(model: Small, parts: Batches, *weights: tuple[str, int], power: int = 2, each: bool = False) -> Tensor:
    """The mean over parts of the data of |sum of g w|^p over the named weights and dims, written out."""
    total = torch.zeros(())
    for x, y in parts:
        model.zero_grad()
        loss_of(model, x, y).backward()
        named = dict(model.named_parameters())
        units = named[weights[0][0]].shape[weights[0][1]]
        rows = [products(named[name], dim, units) for name, dim in weights]
        if each:
            total = total + torch.stack([r.abs().pow(power).sum(1) for r in rows]).sum(0) / len(parts)
        else:
            total = total + torch.stack([r.sum(1) for r in rows]).sum(0).abs().pow(power) / len(parts)
    return total


def one_by_one() -> Batches:
    x, y = images()
    return list(zip(x.split(1), y.split(1), strict=True))


GATES: list[tuple[str, list[tuple[str, int]]]] = [
    ("conv1", [("conv2.weight", 1)]),
    ("conv1", [("bn1.weight", 0), ("bn1.bias", 0)]),
    ("stem", [("conv1.weight", 1), ("last.weight", 1)]),
]


@pytest.mark.parametrize(("group", "weights"), GATES)
def test_taylor_is_the_sum_over_the_weights_behind_the_gate(group: str, weights: list[tuple[str, int]]) -> None:
    """A stream is read twice, and its gates' derivatives add up; behind batch norm and ReLU they are the norm's."""
    model = Small()
    expected = taylor_sums(model, one_by_one(), *weights)
    np.testing.assert_allclose(scores(Taylor(), model)[group], expected.numpy(), rtol=1e-7)
    parts = batches(5)
    found = scores(Taylor(over="batch", squared=False), model, parts)[group]
    np.testing.assert_allclose(found, taylor_sums(model, parts, *weights, power=1).numpy(), rtol=1e-7)


def test_taylor_of_filters_and_of_single_weights() -> None:
    model, parts = Small(), batches(5)
    filters = scores(Taylor(scope="producer"), model)
    np.testing.assert_allclose(filters["conv1"], taylor_sums(model, one_by_one(), ("conv1.weight", 0)), rtol=1e-7)
    both = ("last.weight", 0), ("last.bias", 0)
    np.testing.assert_allclose(filters["last"], taylor_sums(model, one_by_one(), *both), rtol=1e-7)
    each = scores(Taylor(scope="producer", each=True), model)["conv1"]
    expected = taylor_sums(model, one_by_one(), ("conv1.weight", 0), each=True)
    np.testing.assert_allclose(each, expected, rtol=1e-7)
    members = ("conv1.weight", 0), ("bn1.weight", 0), ("bn1.bias", 0), ("conv2.weight", 1)
    each = scores(Taylor(each=True, squared=False, over="batch"), model, parts)["conv1"]
    np.testing.assert_allclose(each, taylor_sums(model, parts, *members, power=1, each=True), rtol=1e-7)
    assert model.conv1.weight.grad is not None  # the caller's gradients stay


def test_taylor_beside_a_criterion_that_runs_sample_by_sample() -> None:
    """Batches stay what they were, although the network runs for each sample."""
    model, parts = Small(), batches(5)
    taylor = Taylor(over="batch")
    both = scores(WeightedSum((taylor, Hessian()), normalise="none", weights=(1, 0)), model, parts)
    np.testing.assert_allclose(both["conv1"], scores(taylor, model, parts)["conv1"], rtol=1e-7)


@pytest.mark.parametrize("of", ["weights", "activations"])
def test_opposite_samples_do_not_cancel(of: str) -> None:
    model, (x, _) = Small(), images(1)
    graph = fxprune.analyze(model, images(2)[0])
    data = Calibration([(x.repeat(2, 1, 1, 1), torch.tensor([1.0, -1.0]))], Sample.from_input(images(2)[0]))

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output.sum(1) * target).mean()

    found = judge(Taylor(of), graph, dict(model.state_dict()), Collector(graph, model, data, loss))
    assert isinstance(found, dict)
    assert all(values.max() > 1e-6 for values in found.values())


def test_taylor_of_activations() -> None:
    model, (x, y) = Small(), images()
    with torch.no_grad():
        value = model.bn1(model.conv1(F.relu(model.bn0(model.stem(x)))))
        stem = F.relu(model.bn0(model.stem(x)))
    z = value.requires_grad_()
    out = F.relu(stem + model.bn2(model.conv2(F.relu(z))))
    F.cross_entropy(model.head(F.relu(model.last(out)).flatten(1)), y, reduction="sum").backward()
    each = (z.grad * z).mean((2, 3)).abs().mean(0).detach()
    found = scores(Taylor("activations"), model)["conv1"]
    np.testing.assert_allclose(found, (each / each.norm()).numpy(), rtol=1e-7)
    mean = (z.grad * z).mean((0, 2, 3)).abs().detach()
    found = scores(Taylor("activations", over="batch", normalise="none"), model, [(x, y)])["conv1"]
    np.testing.assert_allclose(found, mean.numpy(), rtol=1e-7)


def test_hessian() -> None:
    model, (x, y) = Small(), images(4)
    squares = torch.zeros_like(model.conv1.weight)
    for i in range(4):
        model.zero_grad()
        loss_of(model, x[i : i + 1], y[i : i + 1]).backward()
        squares += model.conv1.weight.grad.square() / 4
    expected = (squares * model.conv1.weight.detach().square()).flatten(1).sum(1) / 2
    found = scores(Hessian(scope="producer", normalise="none"), model, [(x, y)])["conv1"]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-7)
    found = scores(Hessian(scope="producer"), model, [(x, y)])["conv1"]
    np.testing.assert_allclose(found, (expected / expected.mean()).numpy(), rtol=1e-7)


def test_greedy_errors_are_those_of_the_sums() -> None:
    parts = np.random.default_rng(0).normal(size=(50, 6))
    errors = greedy_errors(parts.T @ parts)
    order = np.argsort(errors, kind="stable")
    gone: list[int] = []
    for channel in order.tolist():
        growth = {c: np.square(parts[:, [*gone, c]].sum(1)).sum() for c in set(range(6)) - set(gone)}
        assert growth[channel] == pytest.approx(min(growth.values()))
        gone.append(channel)
    assert errors[order[0]] == pytest.approx(np.square(parts).sum(0).min(), abs=1e-6)


def test_thinet_prefers_channels_that_matter_to_the_next_layer() -> None:
    model = Small()
    with torch.no_grad():
        model.conv2.weight[:, 5] = 0
        model.head.weight.view(5, 6, 9)[:, 2] = 0
        model.conv2.weight[:, 7] *= 100
    found = scores(ThiNet(), model)
    assert found["conv1"][5] < 1e-9
    assert int(found["conv1"].argmax()) == 7
    assert int(found["last"].argmin()) == 2


def test_thinet_against_all_outputs_at_sampled_entries() -> None:
    """With one output channel and one position there is nothing to sample: the products are those of the whole."""
    model, (x, _) = Small(), images()
    with torch.no_grad():
        model.head.weight.copy_(model.head.weight[:1].expand(5, -1))
    maps = maps_of(model, x)["last"].flatten(2)
    parts = torch.einsum("ncp,cp->nc", maps, model.head.weight.detach()[0].view(6, 9))
    expected = greedy_errors((parts.T @ parts / parts.sum(1).square().sum()).numpy())
    np.testing.assert_allclose(scores(ThiNet(), model)["last"], expected, atol=1e-9)


@pytest.mark.parametrize(
    ("criterion", "options"),
    [
        (FPGM, {"normalise": "x"}),
        (Lamp, {"scope": "x"}),
        (Slimming, {"normalise": "x"}),
        (Taylor, {"of": "x"}),
        (Taylor, {"scope": "x"}),
        (Taylor, {"over": "x"}),
        (Taylor, {"tap": "x"}),
        (Hessian, {"scope": "x"}),
        (APoZ, {"tap": "x"}),
        (ThiNet, {"entries": 0}),
    ],
)
def test_unknown_arguments(criterion: type, options: dict[str, object]) -> None:
    with pytest.raises(CriterionError):
        criterion(**options)


def test_ties_in_every_order_of_channels() -> None:
    """Twins score alike wherever they stand."""
    model = Small()
    with torch.no_grad():
        for i, j in itertools.pairwise((1, 4, 9)):
            model.conv1.weight[j] = model.conv1.weight[i]
            model.conv2.weight[:, j] = model.conv2.weight[:, i]
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(model.bn1, name)[j] = getattr(model.bn1, name)[i]
    maps = APoZ(), MeanActivation(), HRank(), CHIP(), FeatureEntropy(), FeatureEntropy("histogram")
    weights = FPGM(), Magnitude(), Slimming(), InformationFusion()
    for criterion in (*maps, *weights, Taylor("activations"), Taylor(), Hessian()):
        exact = 1e-7 if isinstance(criterion, CHIP) else 1e-9
        found = scores(criterion, model)["conv1"]
        assert found[1] == pytest.approx(found[4], rel=exact)
        assert found[1] == pytest.approx(found[9], rel=exact)
