"""A recovery never ends worse than the cut, and the report says how near the outputs are to the original's."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.calibration.batches import Batch, held_out
from fxprune.calibration.rows import token_weights
from fxprune.capture.samples import Sample
from fxprune.recovery import Work
from fxprune.reporting import RecoveryRow


def wide(features: int = 96) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, features), nn.ReLU(), nn.Linear(features, 10)).double().eval()


def inputs(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def apart(x: Tensor) -> Tensor:
    return held_out(Batch(Sample((x,), {}), None, len(x)))


@dataclass(frozen=True)
class Ruin:
    """Multiplies the last weights."""

    factor: float

    @property
    def name(self) -> str:
        return "ruin"

    def recover(self, work: Work) -> RecoveryRow:
        work.pruned.state_dict()["2.weight"].mul_(self.factor)
        return RecoveryRow("ruin", ("2.weight",))


@pytest.mark.parametrize("factor", [100.0, float("nan")])
def test_recoveries_that_make_outputs_worse_are_undone_and_named(factor: float) -> None:
    model, x = wide(), inputs(64)
    cut = fxprune.compile(model, x[:2], 0.5, recover=None)
    back = fxprune.recover(cut, model, Ruin(factor), calibration=[x])
    for name, tensor in back.state_dict().items():
        assert torch.equal(tensor, cut.state_dict()[name])
    report = fxprune.report(back)
    (row,) = report.recovery
    assert row.changed == ()
    assert row.guards[0].startswith("undone")
    assert "guard: undone" in " ".join(str(report).split())
    first, second = report.fidelity
    assert first.error == second.error


@pytest.mark.parametrize("count", [3, 10, 24, 40])
def test_few_samples_do_not_make_outputs_worse(count: int) -> None:
    """With less rows than features least squares fits them exactly; on other samples the outputs must not get worse."""
    model, fresh = wide(), inputs(400, seed=9)
    cut = fxprune.compile(model, fresh[:2], 0.5, criterion="random", recover=None)
    back = fxprune.recover(cut, model, calibration=[inputs(count)])
    before, after = (float((net(fresh) - model(fresh)).detach().norm()) for net in (cut, back))
    assert after <= before * 1.02


def test_a_layer_that_fits_noise_keeps_its_weights() -> None:
    """Features that are next to nothing on all samples but those that are held out: no fit can be trusted there."""
    torch.manual_seed(0)
    model, x = wide(), inputs(64)
    x[apart(x)] *= 50
    model[0].bias.data.copy_(-5.0 * torch.ones(96))
    cut = fxprune.compile(model, x[:2], 0.5, criterion="random", recover=None)
    back = fxprune.recover(cut, model, fxprune.recovery.Reconstruct(ridge=0.0), calibration=[x])
    before, after = fxprune.report(back).fidelity
    assert before.error is not None
    assert after.error is not None
    assert after.error <= before.error


def test_fidelity_is_that_of_the_samples_held_out() -> None:
    model, x = wide(), inputs(160)
    pruned = fxprune.compile(model, x[:2], 0.5, calibration=list(x.split(50)))
    cut, recovered = fxprune.report(pruned).fidelity
    rows = x[apart(x)]
    given, wanted = pruned(rows).detach(), model(rows).detach()
    assert (cut.network, recovered.network) == ("cut", "recovered")
    assert recovered.held_out
    assert recovered.samples == len(rows) > 5
    assert recovered.error == pytest.approx(float((given - wanted).norm() / wanted.norm()))
    assert recovered.agreement == pytest.approx(float((given.argmax(1) == wanted.argmax(1)).double().mean()))
    assert recovered.cosine == pytest.approx(float(nn.functional.cosine_similarity(given, wanted).mean()))
    assert cut.error is not None
    assert recovered.error is not None
    assert recovered.error < cut.error


def test_the_error_that_a_group_adds_is_that_of_cutting_it_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10)).double().eval()
    x = inputs(160)
    report = fxprune.report(fxprune.compile(model, x[:2], 0.5, calibration=[x], round_to=1, residual="coupled"))
    rows = x[apart(x)][:16]
    for row, layer, reader in zip(report.groups, (model[0], model[2]), (model[2], model[4]), strict=True):
        gone = torch.ones(row.before, dtype=torch.bool)
        gone[list(report.plan.groups[row.name])] = False
        weight = reader.weight.detach().clone()
        with torch.no_grad():
            reader.weight[:, gone] = 0
            off = model(rows)
            reader.weight.copy_(weight)
            wanted = model(rows)
        assert row.error == pytest.approx(float((off - wanted).norm() / wanted.norm()))
        assert layer.out_features == row.before
    assert "error added" in str(report)
    assert fxprune.Report.from_dict(report.as_dict()).groups == report.groups


def test_fidelity_is_in_both_reports_and_is_saved(tmp_path: object) -> None:
    model, x = wide(), inputs(64)
    report = fxprune.report(fxprune.compile(model, x[:2], 0.5, calibration=[x], recover=None))
    (cut,) = report.fidelity
    assert cut.network == "cut"
    assert "fidelity cut: outputs" in " ".join(str(report).split())
    report.save_html(f"{tmp_path}/report.html")
    with open(f"{tmp_path}/report.html", encoding="utf-8") as page:
        assert "<td>cut</td>" in page.read()
    again = fxprune.Report.from_dict(report.as_dict())
    assert again.fidelity == report.fidelity
    assert again.notes == report.notes


def test_decisions_of_tokens_are_compared_one_by_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(30, 16), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 30)).eval()
    tokens = torch.randint(0, 30, (40, 7))
    pruned = fxprune.compile(model, tokens[:2], 0.3, calibration=[tokens[:20], tokens[20:]])
    recovered = fxprune.report(pruned).fidelity[-1]
    rows = tokens[apart(tokens)]
    same = pruned(rows).argmax(2) == model(rows).argmax(2)
    assert recovered.agreement == pytest.approx(float(same.double().mean()))


class Words(nn.Module):
    """Tokens, a hidden layer, the next token."""

    def __init__(self, vocabulary: int = 30) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.up = nn.Embedding(vocabulary, 16), nn.Linear(16, 48)
        self.down, self.head = nn.Linear(48, 16), nn.Linear(16, 30)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        return self.head(x + self.down(self.up(x).relu()))


@dataclass(frozen=True)
class Change:
    """Adds to every output, or multiplies outputs."""

    more: float = 0.0
    times: float = 1.0
    name: str = "change"

    def recover(self, work: Work) -> RecoveryRow:
        state = work.pruned.state_dict()
        for name in ("head.weight", "head.bias"):
            state[name].mul_(self.times)
        state["head.bias"].add_(self.more)
        return RecoveryRow("change", ("head.bias",))


def diverging(network: nn.Module, model: nn.Module, tokens: Tensor) -> float:
    with torch.no_grad():
        found, wanted = (one(tokens).log_softmax(-1) for one in (network, model))
    return float(nn.functional.kl_div(found, wanted, reduction="none", log_target=True).sum(-1).mean())


def test_recoveries_of_predicted_tokens_are_judged_by_their_divergence() -> None:
    """A constant in all of a token's logits predicts the same; larger ones are surer."""
    model, tokens = Words().eval(), torch.randint(0, 30, (64, 7))
    cut = fxprune.compile(model, tokens[:2], 0.4, recover=None)
    moved, surer = (
        fxprune.report(fxprune.recover(cut, model, change, calibration=[tokens]))
        for change in (Change(more=5.0), Change(times=4.0))
    )
    assert moved.recovery[-1].changed
    assert surer.recovery[-1].guards[0].startswith("undone, as the predictions would diverge by")
    before = diverging(cut, model, tokens[apart(tokens)])
    assert [row.divergence for row in moved.fidelity] == pytest.approx([before, before], rel=1e-4)
    assert "nats a token" in " ".join(str(moved).split())


def test_outputs_that_are_no_predictions_of_tokens_are_judged_by_their_error() -> None:
    """Fewer classes than rows of the table."""
    model, tokens = Words(vocabulary=31).eval(), torch.randint(0, 31, (64, 7))
    cut = fxprune.compile(model, tokens[:2], 0.4, recover=None)
    report = fxprune.report(fxprune.recover(cut, model, Change(more=5.0), calibration=[tokens]))
    assert report.recovery[-1].guards[0].startswith("undone, as the outputs would be")
    assert report.fidelity[0].divergence is None


def test_what_is_held_out_depends_on_the_samples_alone() -> None:
    x = inputs(200)
    parts = torch.cat([apart(part) for part in x.split(17)])
    assert torch.equal(parts, apart(x))
    assert 10 <= int(parts.sum()) <= 40


class Fixed(nn.Module):
    """Takes batches of 16 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = wide()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.reshape(16, 12))


def test_fidelity_counts_no_fitted_sample_where_the_network_takes_one_batch_size() -> None:
    model, x = Fixed(), inputs(96)
    pruned = fxprune.compile(model, x[:16], 0.5, calibration=list(x.split(16)))
    recovered = fxprune.report(pruned).fidelity[-1]
    given, wanted = (torch.cat([net(part)[apart(part)] for part in x.split(16)]).detach() for net in (pruned, model))
    assert recovered.samples == len(given) < 96
    assert recovered.error == pytest.approx(float((given - wanted).norm() / wanted.norm()))


def test_a_token_far_larger_than_others_is_not_all_that_is_fitted() -> None:
    """As the first of a sequence is in language models, a thousand times as large."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 48), nn.GELU(), nn.Linear(48, 10)).double().eval()
    data = torch.randn(64, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    large = data.clone()
    large[:, 0] *= 1e3
    cut = fxprune.compile(model, data[:2], 0.5, recover=None)
    backs = (fxprune.recover(cut, model, "reconstruct", calibration=[x]) for x in (large, data))
    with torch.no_grad():
        errors = [float((back(data[:, 1:]) - model(data[:, 1:])).norm()) for back in backs]
    assert errors[0] < 1.2 * errors[1]


def test_rows_count_by_what_is_usual_in_their_sample() -> None:
    energy = torch.tensor([[1.0, 1.0, 1.0, 1000.0], [0.0, 0.0, 0.0, 5.0]])
    torch.testing.assert_close(token_weights(energy, 2), torch.tensor([[1.0, 1.0, 1.0, 0.01], [1.0, 1.0, 1.0, 1.0]]))
