"""The expected criteria against their formulas written out on whole tensors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fxprune.criteria import (
    CHIP,
    FPGM,
    APoZ,
    Hessian,
    HRank,
    Lamp,
    MeanActivation,
    Slimming,
    Taylor,
    ThiNet,
)
from fxprune.criteria.spectra import nuclear_norm_changes
from fxprune.criteria.thinet import greedy_errors
from fxprune.errors import CriterionError

from .calibrated import Small, images, scores


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


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (1, 4)])
def test_nuclear_norm_changes(shape: tuple[int, int]) -> None:
    rows = torch.randn(shape, dtype=torch.float64)
    whole = torch.linalg.matrix_norm(rows, "nuc")
    expected = []
    for i in range(shape[0]):
        zeroed = rows.clone()
        zeroed[i] = 0
        expected.append(float(whole - torch.linalg.matrix_norm(zeroed, "nuc")))
    np.testing.assert_allclose(nuclear_norm_changes(rows).numpy(), expected, atol=1e-6)


def test_chip() -> None:
    model, (x, _) = Small(), images()
    rows = maps_of(model, x)["conv1"].flatten(2).round(decimals=4)
    expected = torch.stack([nuclear_norm_changes(sample) for sample in rows]).mean(0)
    np.testing.assert_allclose(scores(CHIP(normalise="none"), model)["conv1"], expected.numpy(), rtol=1e-9)


def loss_of(model: Small, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def test_taylor_of_weights() -> None:
    model, (x, y) = Small(), images()
    loss_of(model, x, y).backward()

    def products(parameter: Tensor, dim: int) -> Tensor:
        assert parameter.grad is not None
        return (parameter.grad * parameter.detach()).movedim(dim, 0).reshape(12, -1)

    filters = products(model.conv1.weight, 0)
    found = scores(Taylor(scope="producer"), model)["conv1"]
    np.testing.assert_allclose(found, filters.sum(1).square().numpy(), rtol=1e-7)
    each = scores(Taylor(scope="producer", each=True, squared=False), model)["conv1"]
    np.testing.assert_allclose(each, filters.abs().sum(1).numpy(), rtol=1e-7)
    parts = [filters, products(model.conv2.weight, 1), products(model.bn1.weight, 0), products(model.bn1.bias, 0)]
    expected = sum(p.sum(1) for p in parts).abs()
    np.testing.assert_allclose(scores(Taylor(squared=False), model)["conv1"], expected.numpy(), rtol=1e-7)
    assert model.conv1.weight.grad is not None  # the caller's gradients stay


def test_taylor_of_activations() -> None:
    model, (x, y) = Small(), images()
    with torch.no_grad():
        value = model.bn1(model.conv1(F.relu(model.bn0(model.stem(x)))))
        stem = F.relu(model.bn0(model.stem(x)))
    z = value.requires_grad_()
    out = F.relu(stem + model.bn2(model.conv2(F.relu(z))))
    F.cross_entropy(model.head(F.relu(model.last(out)).flatten(1)), y, reduction="sum").backward()
    expected = (z.grad * z).mean((0, 2, 3)).abs().detach()
    found = scores(Taylor("activations"), model)["conv1"]
    np.testing.assert_allclose(found, (expected / expected.norm()).numpy(), rtol=1e-7)
    each = (z.grad * z).mean((2, 3)).abs().mean(0).detach()
    found = scores(Taylor("activations", each=True, normalise="none"), model)["conv1"]
    np.testing.assert_allclose(found, each.numpy(), rtol=1e-7)


def test_hessian() -> None:
    model, (x, y) = Small(), images(4)
    squares = torch.zeros_like(model.conv1.weight)
    for i in range(4):
        model.zero_grad()
        loss_of(model, x[i : i + 1], y[i : i + 1]).backward()
        squares += model.conv1.weight.grad.square() / 4
    expected = (squares * model.conv1.weight.detach().square()).flatten(1).sum(1) / 2
    found = scores(Hessian(scope="producer"), model, [(x, y)])["conv1"]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-7)


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
    for criterion in (FPGM(), APoZ(), MeanActivation(), HRank(), CHIP(), Taylor("activations")):
        exact = 1e-7 if isinstance(criterion, CHIP) else 1e-9
        found = scores(criterion, model)["conv1"]
        assert found[1] == pytest.approx(found[4], rel=exact)
        assert found[1] == pytest.approx(found[9], rel=exact)
