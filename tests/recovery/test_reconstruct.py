"""Least-squares reconstruction against networks in which it is exact, and against torch's own least squares."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.calibration.batches import Batch, held_out
from fxprune.capture.samples import Sample
from fxprune.errors import CalibrationError, RecoveryError
from fxprune.recovery import FoldBias, Reconstruct


class Lines(nn.Module):
    """Two linear layers with nothing between them; channels 4 to 7 are combinations of channels 0 to 3."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)
        self.double()
        with torch.no_grad():
            mixing = torch.randn(4, 4, dtype=torch.float64)
            self.first.weight[4:] = mixing @ self.first.weight[:4]
            self.first.bias[4:] = mixing @ self.first.bias[:4]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class Keeps:
    """Keeps the units in the order of their index."""

    name = "keeps"

    def score(self, group: object, tensors: object, graph: object) -> object:
        import numpy as np

        return -np.arange(group.size, dtype=np.float64)  # type: ignore[attr-defined]


def half(model: nn.Module, x: Tensor, **options: object) -> nn.Module:
    return fxprune.compile(model, x[:2], 0.5, budget="channels", criterion=Keeps(), scope="uniform", **options)


def test_exact_combinations_are_reconstructed_exactly() -> None:
    model = Lines()
    x = torch.randn(64, 5, dtype=torch.float64)
    cut = half(model, x)
    back = half(model, x, calibration=[x[:40], x[40:]], recover=Reconstruct(ridge=0.0, hold_out=False))
    assert cut.first.out_features == 4
    assert (cut(x) - model(x)).abs().max() > 0.1
    torch.testing.assert_close(back(x), model(x), rtol=0, atol=1e-9)


class Convolutions(nn.Module):
    """A strided, dilated and padded convolution behind a cut, and a linear layer behind a flatten."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, **options)
        self.head = nn.Linear(4, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(F.relu(self.first(x))).mean((2, 3)))


@pytest.mark.parametrize(
    "options", [{"padding": 1}, {"stride": 2, "padding": (0, 2)}, {"dilation": 2}, {"padding": "same"}, {"bias": False}]
)
def test_equals_lstsq_on_materialised_features(options: dict[str, object]) -> None:
    model = Convolutions(**options)
    x = torch.randn(20, 3, 7, 7, dtype=torch.float64)
    exclude = ["second", "head"]
    back = half(
        model, x, exclude=exclude, calibration=[x], recover=Reconstruct(ridge=0.0, hold_out=False, positions=1000)
    )
    pad = {"same": 1}.get(options.get("padding"), options.get("padding", 0))  # type: ignore[call-overload]
    features = F.relu(back.first(x)).detach()
    geometry = {"padding": pad, "stride": options.get("stride", 1), "dilation": options.get("dilation", 1)}
    rows = F.unfold(features, 3, **geometry).transpose(1, 2).reshape(-1, features.shape[1] * 9)
    wanted = model.second(F.relu(model.first(x))).detach().flatten(2).transpose(1, 2).reshape(-1, 4)
    if model.second.bias is not None:
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
    expected = torch.linalg.lstsq(rows, wanted).solution.T
    torch.testing.assert_close(
        back.second.weight.detach().flatten(1),
        expected[:, : rows.shape[1] - (model.second.bias is not None)],
        rtol=1e-6,
        atol=1e-8,
    )
    if model.second.bias is not None:
        torch.testing.assert_close(back.second.bias.detach(), expected[:, -1], rtol=1e-6, atol=1e-8)


class Block(nn.Module):
    """A residual stream, a grouped and a depthwise convolution, batch norm, attention heads and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1, self.bn1 = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.conv2, self.bn2 = nn.Conv2d(12, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)
        for norm in (self.bn1, self.bn2):
            nn.init.normal_(norm.running_mean, 0, 0.2)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.depthwise(F.relu(self.bn1(self.conv1(x)), inplace=True))
        x = x + self.bn2(self.conv2(y))
        x = self.grouped(F.relu_(x)).flatten(2).transpose(1, 2)
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.head(x.mean(1))


@pytest.mark.parametrize("method", ["reconstruct", "bias", "batchnorm"])
def test_every_kind_of_consumer_comes_closer(method: str) -> None:
    model = Block()
    x = torch.randn(48, 3, 6, 6, dtype=torch.float64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cut = fxprune.compile(model, x[:2], 0.4)
    back = fxprune.recover(cut, model, method, calibration=[x[:30], x[30:]])
    (row,) = fxprune.report(back).recovery
    assert row.samples == 48
    if method == "reconstruct":
        expected = {"depthwise.weight", "conv2.weight", "attention.in_proj_weight", "attention.out_proj.weight"}
        assert expected | {"grouped.weight", "head.weight"} <= set(row.changed)
        assert row.error_after < row.error_before
    if method != "batchnorm":
        assert (back(x) - model(x)).square().mean() < (cut(x) - model(x)).square().mean()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert fxprune.report(cut).recovery == ()
    assert list(back.state_dict()) == list(cut.state_dict())


class Constant(nn.Module):
    """Channels 3 to 5 are constants."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 4, 3, bias=bias)
        self.norm = nn.BatchNorm2d(4)
        with torch.no_grad():
            self.first.weight[3:] = 0
            self.norm.running_mean.normal_()
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.second(F.relu(self.first(x)))).mean((2, 3))


@pytest.mark.parametrize("bias", [True, False])
def test_a_constant_folds_exactly(bias: bool) -> None:
    model = Constant(bias)
    with torch.no_grad():
        model.first.bias[3:] = torch.tensor([0.5, 2.0, -1.0])
    x = torch.randn(10, 2, 5, 5, dtype=torch.float64)
    back = half(model, x, exclude=["second"], calibration=[x], recover=FoldBias())
    other = torch.randn(7, 2, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(back(other), model(other), rtol=0, atol=1e-12)


def test_without_calibration_it_says_so() -> None:
    with pytest.raises(RecoveryError, match="calibration"):
        half(Lines(), torch.randn(4, 5, dtype=torch.float64), recover="reconstruct")
    with pytest.raises(RecoveryError, match="batchnorm, bias, fuse, match, reconstruct"):
        half(Lines(), torch.randn(4, 5, dtype=torch.float64), recover="magic")


@pytest.mark.parametrize("how", ["reconstruct", "batchnorm", "bias"])
@pytest.mark.parametrize("bad", [0, 1])
def test_a_batch_on_which_the_model_fails_is_named(how: str, bad: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    pruned = fxprune.compile(model, torch.randn(2, 3, 8, 8), 0.3)
    batches = [torch.randn(8, 3, 8, 8), torch.randn(8, 3, 8, 8)]
    batches[bad] = torch.randn(8, 5, 8, 8)
    with pytest.raises(CalibrationError, match=r"fails on a batch .*\(\d, 5, 8, 8\)"):
        fxprune.recover(pruned, model, how, calibration=batches)


class Floors(nn.Module):
    """A layer whose outputs go through a ReLU, behind a batch norm that turns one of them round."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(4, 8), nn.Linear(8, 5), nn.BatchNorm1d(5)
        self.norm.weight.data.copy_(torch.tensor([1.0, -2.0, 0.5, 3.0, 1.0]))
        self.norm.running_mean += 0.1
        self.norm.bias.data -= 0.2
        self.last = nn.Linear(5, 2)
        self.behind = norm
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.relu(self.first(x)))
        return self.last(F.relu(self.norm(x) if self.behind else x))


@pytest.mark.parametrize("norm", [False, True])
def test_in_front_of_a_relu_only_values_that_it_passes_are_fitted(norm: bool) -> None:
    """Least squares, then three times towards targets that follow the fit where both are below zero."""
    torch.manual_seed(0)
    model = Floors(norm)
    x = torch.randn(200, 4, dtype=torch.float64)
    recover = Reconstruct(ridge=0.0, hold_out=False)
    back = fxprune.compile(model, x[:2], {"first": 0.5}, calibration=[x], recover=recover)
    with torch.no_grad():
        features = torch.cat([F.relu(back.first(x)), torch.ones(200, 1, dtype=torch.float64)], dim=1)
        wanted = model.second(F.relu(model.first(x)))
        floor = model.norm.running_mean - model.norm.bias * (model.norm.running_var + 1e-5).sqrt() / model.norm.weight
        floor = floor if norm else torch.zeros(5)
        sign = model.norm.weight.sign() if norm else torch.ones(5)
        met = wanted
        for _ in range(4):
            found = torch.linalg.lstsq(features, met).solution
            given = features @ found
            below = sign * (wanted - floor) <= 0
            met = torch.where(below, torch.where(sign * (given - floor) < 0, given, floor), wanted)
        torch.testing.assert_close(back.second.weight, found[:-1].T, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(back.second.bias, found[-1], rtol=1e-6, atol=1e-8)


def test_the_pull_to_the_old_weights_is_as_strong_as_serves_other_samples() -> None:
    """Few rows: of three ridges the one whose fit is nearest on the samples that are held out."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 3)).double()
    x = torch.randn(64, 6, dtype=torch.float64)
    apart = held_out(Batch(Sample((x,), {}), None, len(x)))
    cut = fxprune.compile(model, x[:2], 0.5, recover=None)
    with torch.no_grad():
        features, wanted = torch.tanh(cut.get_submodule("0")(x)), model(x)
        errors = []
        for ridge in (1e-2, 1e-1, 1.0):
            xs, ys = (rows[~apart] - rows[~apart].mean(0) for rows in (features, wanted))
            old, gram = cut.get_submodule("2").weight, xs.T @ xs
            pull = ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
            weight = torch.linalg.solve(gram + pull, xs.T @ ys + pull @ old.T)
            off = (features[apart] - features[~apart].mean(0)) @ weight - wanted[apart] + wanted[~apart].mean(0)
            errors.append((float(off.square().sum()), weight.T))
        back = fxprune.recover(cut, model, Reconstruct(ridge=1e-2), calibration=[x])
        expected = min(errors, key=lambda pair: pair[0])[1]
        torch.testing.assert_close(back.get_submodule("2").weight, expected, rtol=1e-6, atol=1e-8)
