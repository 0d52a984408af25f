"""Passes of gradient descent towards what the original's parts give: nearer on other samples, or not at all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.capture.samples import Sample
from fxprune.errors import RecoveryError
from fxprune.recovery import Match
from fxprune.recovery.matching import _is_matrix, _orthogonal, _Steps


class Residual(nn.Module):
    """Tokens, two blocks beside a stream, classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(20, 16)
        self.up, self.down = (nn.ModuleList(nn.Linear(*size) for _ in range(2)) for size in ((16, 24), (24, 16)))
        self.head = nn.Linear(16, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(up(x).relu())
        return self.head(x)


def tokens(count: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 20, (count, 6), generator=torch.Generator().manual_seed(seed))


def error(network: nn.Module, model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((network(x) - model(x)).norm() / model(x).norm())


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module]:
    model = Residual().eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model, fxprune.compile(model, tokens(2), 0.5, calibration=list(tokens(160).split(40)), recover="reconstruct")


def test_the_outputs_come_nearer_on_other_samples(pair: tuple[nn.Module, nn.Module]) -> None:
    model, cut = pair
    before = [tensor.clone() for network in pair for tensor in network.state_dict().values()]
    back = fxprune.recover(cut, model, Match(passes=3), calibration=list(tokens(160).split(40)))
    fresh = tokens(400, seed=2)
    assert error(back, model, fresh) < 0.95 * error(cut, model, fresh)
    assert torch.equal(back.table.weight, model.table.weight)
    assert not any(p.requires_grad or p.grad is not None for p in back.parameters())
    assert all(map(torch.equal, before, [tensor for network in pair for tensor in network.state_dict().values()]))
    row = fxprune.report(back).recovery[-1]
    assert row.method == "match"
    assert not row.guards
    assert row.error_before is not None
    assert row.error_after is not None
    assert row.error_after < row.error_before


def test_batches_make_no_difference(pair: tuple[nn.Module, nn.Module]) -> None:
    model, cut = pair
    one, other = (fxprune.recover(cut, model, "match", calibration=list(tokens(90).split(n))) for n in (90, 7))
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=1e-3, atol=1e-4)


def test_steps_that_are_too_long_become_shorter(pair: tuple[nn.Module, nn.Module]) -> None:
    model, cut = pair
    back = fxprune.recover(cut, model, Match(rate=1.0), calibration=[tokens(160)])
    assert error(back, model, tokens(400, seed=2)) < error(cut, model, tokens(400, seed=2))


def test_steps_that_are_too_long_all_the_same_change_nothing(pair: tuple[nn.Module, nn.Module]) -> None:
    model, cut = pair
    back = fxprune.recover(cut, model, Match(rate=1e6), calibration=[tokens(160)])
    assert "the loss rises" in fxprune.report(back).recovery[-1].guards[0]
    assert all(torch.equal(tensor, cut.state_dict()[name]) for name, tensor in back.state_dict().items())


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (8, 3, 3, 3)])
def test_steps_of_matrices_are_orthogonal(shape: tuple[int, ...]) -> None:
    value = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    left, _, right = torch.linalg.svd(value.flatten(1), full_matrices=False)
    found = _orthogonal(value)
    assert float(torch.cosine_similarity(found.flatten(), (left @ right).flatten(), dim=0)) > 0.95
    assert float(found.square().mean()) == pytest.approx(1, rel=1e-4)
    assert not _orthogonal(torch.zeros(shape)).any()


def test_only_what_mixes_channels_is_a_matrix() -> None:
    layers = nn.Linear(6, 8), nn.Conv2d(6, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.Linear(300, 300)
    assert [_is_matrix(layer.weight) for layer in layers] == [True, True, False, False, False]
    assert not _is_matrix(torch.zeros(1, 9, 4))
    assert not _is_matrix(torch.zeros(0, 4))


def test_steps_of_large_matrices_are_shorter_the_wider_they_are() -> None:
    own = [nn.Parameter(torch.ones(size)) for size in ((320, 400), (640, 640), (400,))]
    for parameter in own:
        parameter.grad = torch.ones_like(parameter)
    _Steps(own).step(0.1)
    assert [float(1 - parameter.detach().mean()) for parameter in own] == pytest.approx([0.005, 0.0025, 0.1], rel=1e-3)


def test_predictions_of_tokens_are_matched_by_their_divergence() -> None:
    """The loss is the divergence of the predictions, in nats, on all samples but those held out."""
    torch.manual_seed(0)
    model = Residual().eval()
    model.head = nn.Linear(16, 20)
    data, fresh = tokens(160), tokens(400, seed=2)
    cut = fxprune.compile(model, data[:2], 0.6, calibration=[data], recover=None)
    back = fxprune.recover(cut, model, Match(passes=3), calibration=[data])
    row = fxprune.report(back).recovery[-1]
    with torch.no_grad():
        wanted, *found = (network(fresh).log_softmax(-1) for network in (model, cut, back))
    before, after = (float((wanted.exp() * (wanted - one)).sum(-1).mean()) for one in found)
    assert after < 0.8 * before
    assert row.error_before is not None
    assert 0.5 * before < row.error_before < 1.2 * before
    assert row.error_after == pytest.approx(after, rel=0.3)


class Fixed(nn.Module):
    """Takes batches of eight alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(6, 24), nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] != 8:
            raise ValueError("eight")
        return self.down(self.up(x).relu())


@pytest.mark.parametrize("shape", [(64, 6), (64, 1, 1, 6)], ids=["rows", "images"])
def test_a_network_for_one_batch_size_keeps_its_values(shape: tuple[int, ...]) -> None:
    model, data = Fixed().eval(), list(torch.randn(shape, generator=torch.Generator().manual_seed(1)).split(8))
    cut = fxprune.compile(model, data[0], 0.4, recover=None)
    back = fxprune.recover(cut, model, Match(batch=5), calibration=data)
    assert "cannot be trained on parts of a batch" in fxprune.report(back).recovery[-1].guards[0]
    assert all(torch.equal(tensor, cut.state_dict()[name]) for name, tensor in back.state_dict().items())


class Images(nn.Module):
    """Two convolutions and classes, from means over all positions or from each position."""

    def __init__(self, *, pooled: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1 if pooled else 6)
        self.head = nn.Linear(12 if pooled else 12 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.two(self.one(x).relu()).relu()).flatten(1))


@pytest.mark.parametrize("pooled", [True, False])
def test_images_are_mirrored_if_the_original_answers_alike(pooled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mean over positions hardly sees which side is which; a layer that reads each position does."""
    random = torch.Generator().manual_seed(1)
    images = torch.randn(128, 3, 6, 6, generator=random)
    if pooled:
        images += 2 * torch.randn(128, 3, 1, 1, generator=random)
    model = Images(pooled=pooled).eval()
    cut = fxprune.compile(model, images[:2], 0.5, calibration=[images], recover="reconstruct")
    back = fxprune.recover(cut, model, "match", calibration=[images])
    monkeypatch.setattr(Sample, "mirrored", lambda sample: None)
    plain = fxprune.recover(cut, model, "match", calibration=[images])
    assert torch.equal(back.one.weight, plain.one.weight) is not pooled


@pytest.mark.parametrize("values", [{"passes": 0}, {"batch": 0}, {"rate": 0.0}, {"rate": float("nan")}])
def test_values_that_make_no_sense(values: dict[str, float]) -> None:
    with pytest.raises(RecoveryError, match="at least 1"):
        Match(**values)
