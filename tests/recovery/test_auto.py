"""What "auto" stands for: with data, without, and where data cannot help."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import CalibrationError, RecoveryError


class Opaque(nn.Module):
    """A forward that goes by the values of its input, around a part that can be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if float(x.sum()) > 1e9 else self.body(x) * 2


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5))
    return nn.Sequential(*layers).eval()


def images(count: int = 64) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def data() -> list[Tensor]:
    return list(images().split(16))


def kept_bit_for_bit(pruned: nn.Module, model: nn.Module) -> bool:
    """Whether every tensor is the block of the original's that the plan keeps."""
    plan = fxprune.report(pruned).plan
    assert plan is not None
    original = model.state_dict()
    for name, tensor in pruned.state_dict().items():
        block = original[name]
        for dim, index in enumerate(plan.keep[name]):
            block = block if index is None else block.index_select(dim, index)
        if not torch.equal(tensor, block):
            return False
    return True


def test_without_data_it_is_magnitude_and_kept_weights_stay() -> None:
    model, x = net(), images(2)
    pruned = fxprune.compile(model, x, 0.5)
    report = fxprune.report(pruned)
    assert report.plan is not None
    assert (
        report.plan.groups
        == fxprune.plan(model, x, 0.5, criterion="magnitude", scope="global", residual="coupled").groups
    )
    assert kept_bit_for_bit(pruned, model)
    assert not report.recovery
    assert report.settings["scope"] == "global"
    assert "there is no calibration" in report.notes[0]
    assert "pass calibration=" in report.notes[1]
    assert all(note[:20] in str(report) for note in report.notes)


def test_with_data_it_is_the_recipe_by_name() -> None:
    model, x = net(), images(2)
    usual = fxprune.compile(model, x, 0.5, calibration=data())
    recipe = {
        "criterion": "reconstruction",
        "scope": "reconstruction",
        "residual": "inner",
        "recover": ["reconstruct", "match"],
    }
    named = fxprune.compile(model, x, 0.5, calibration=data(), **recipe)
    cut = fxprune.compile(model, x, 0.5, calibration=data(), recover=None)
    for name, tensor in named.state_dict().items():
        assert torch.equal(tensor, usual.state_dict()[name])
    assert [row.method for row in fxprune.report(usual).recovery] == ["reconstruct", "match"]
    assert "recover reconstruct and match" in fxprune.report(usual).notes[0]
    assert not fxprune.report(named).notes
    wanted = model(images())
    assert (usual(images()) - wanted).norm() < (cut(images()) - wanted).norm()
    assert kept_bit_for_bit(cut, model)


def test_a_named_criterion_keeps_its_own_widths() -> None:
    model, x = net(), images(2)
    usual = fxprune.plan(model, x, 0.5, criterion="hrank", calibration=data())
    assert usual.groups == fxprune.plan(model, x, 0.5, criterion="hrank", calibration=data(), scope="global").groups


def test_without_auto_nothing_is_noted() -> None:
    pruned = fxprune.compile(
        net(), images(2), 0.5, criterion="magnitude", scope="global", residual="coupled", recover=None
    )
    assert fxprune.report(pruned).notes == ()


class Stream(nn.Module):
    def __init__(self, inner: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.up, self.down = nn.Linear(6, 32), nn.Linear(32, inner), nn.Linear(inner, 32)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.down(self.up(x).relu()))


def test_with_data_a_residual_stream_stays_where_the_budget_allows_it() -> None:
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    wide = fxprune.compile(Stream(64).eval(), x[:2], 0.5, calibration=[x])
    assert (wide.stem.out_features, fxprune.report(wide).settings["residual"]) == (32, "inner")
    narrow = fxprune.compile(Stream(4).eval(), x[:2], 0.5, calibration=[x])
    report = fxprune.report(narrow)
    assert report.achieved >= 0.5
    assert report.settings["residual"] == "coupled"
    assert "budget cannot be met" in report.notes[-1]
    assert fxprune.compile(Stream(64).eval(), x[:2], 0.5).stem.out_features < 32


def test_an_opaque_forward_is_cut_as_without_data() -> None:
    model, x = Opaque().eval(), images(2)
    pruned = fxprune.compile(model, x, 0.3, calibration=data())
    report = fxprune.report(pruned)
    assert report.achieved >= 0.3
    assert not report.recovery
    assert "opaque" in report.notes[0]


def test_a_model_without_values_is_cut_as_without_data() -> None:
    report = fxprune.report(fxprune.compile(net().to("meta"), images(2).to("meta"), 0.3, calibration=data()))
    assert report.achieved >= 0.3
    assert "meta" in report.notes[0]


def test_a_network_that_reconstruction_cannot_read_is_cut_by_magnitude() -> None:
    """The only reader of the channels is a grouped convolution, whose features reconstruction does not rank."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 8, 3, groups=4)).eval()
    report = fxprune.report(fxprune.compile(model, images(2), 0.25, calibration=data()))
    assert "criterion magnitude" in report.notes[0]
    assert "finds nothing to judge by" in report.notes[0]


def test_recovery_that_was_asked_for_needs_data() -> None:
    model = net()
    with pytest.raises(RecoveryError, match="calibration"):
        fxprune.recover(fxprune.compile(model, images(2), 0.5), model)


class Borrowing(nn.Module):
    """Calls a layer that is no part of it: its weight is a constant of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.lent = nn.Linear(6, 16), nn.Linear(16, 4), [nn.Linear(16, 16)]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.lent[0](self.first(x)).relu())


def test_a_layer_of_constant_weights_is_read_too() -> None:
    torch.manual_seed(0)
    model, batches = Borrowing().eval(), list(torch.randn(64, 6).split(16))
    weight = model.lent[0].weight.detach().clone()
    pruned = fxprune.compile(model, batches[0], 0.4, calibration=batches)
    cut = fxprune.compile(model, batches[0], 0.4, calibration=batches, recover=None)
    with torch.no_grad():
        recovered, plain = ((net(batches[0]) - model(batches[0])).square().sum() for net in (pruned, cut))
    assert recovered < plain
    assert torch.equal(model.lent[0].weight, weight)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float16, 1e5), (torch.float32, 1e30)])
def test_values_that_overflow_inside_are_named(dtype: torch.dtype, scale: float) -> None:
    class Loud(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x) * scale)

    model = Loud(nn.Linear(6, 16), nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))).to(dtype).eval()
    batches = [torch.randn(8, 6).to(dtype)]
    with pytest.raises(
        CalibrationError, match=f"the layer of 1.0.weight reads.*too large to be squared.* than {dtype}"
    ):
        fxprune.compile(model, batches[0], 0.3, calibration=batches)
