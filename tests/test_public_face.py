"""What the package promises to those who use it: entrances, options, and a result that behaves as hand-written."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

import fxprune
from fxprune.errors import FxpruneError
from fxprune.options import Budget, CriterionName, FormatName, FreeSize, PlanOptions, RecoveryName, table
from tests.snapshots import storages


class ConvNet(nn.Module):
    """Residual, depthwise, dropout: a small network of every day."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.expand, self.project = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 16, 1)
        self.norm = nn.BatchNorm2d(32)
        self.drop = nn.Dropout(0.1)
        self.register_buffer("mean", torch.zeros(3, 1, 1))
        self.register_buffer("table", torch.rand(16, 1, 1), persistent=False)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x - self.mean)
        y = F.relu(self.norm(self.expand(self.depthwise(x))))
        x = x + self.project(self.drop(y)) * self.table
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def image(batch: int = 2, size: int = 12) -> torch.Tensor:
    return torch.randn(batch, 3, size, size)


@pytest.fixture
def model() -> nn.Module:
    return ConvNet()


@pytest.fixture
def pruned(model: nn.Module) -> fx.GraphModule:
    return fxprune.compile(model.eval(), image(), 0.5)


# -- entrances --------------------------------------------------------------------------------------------------------


def test_everything_public_is_listed_typed_and_documented() -> None:
    for name in fxprune.__all__:
        thing = getattr(fxprune, name)
        assert inspect.getdoc(thing), name
    for function in (
        fxprune.compile,
        fxprune.analyze,
        fxprune.plan,
        fxprune.apply,
        fxprune.recover,
        fxprune.report,
    ):
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty
        assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())


def test_plan_takes_what_compile_takes_apart_from_the_proof_and_recovery() -> None:
    taken = {f: dict(inspect.signature(f).parameters) for f in (fxprune.compile, fxprune.plan)}
    del taken[fxprune.compile]["verify"]
    del taken[fxprune.compile]["recover"]
    assert {n: (p.kind, p.default) for n, p in taken[fxprune.compile].items()} == {
        n: (p.kind, p.default) for n, p in taken[fxprune.plan].items()
    }


def test_compile_takes_and_schedules_pass_on_the_table_of_options() -> None:
    taken = inspect.signature(fxprune.compile).parameters
    rows = {name: row.default for name, row in table().items()}
    assert {name: taken[name].default for name in rows} == rows
    assert PlanOptions.__annotations__.keys() == (rows.keys() - {"ratio"}) | {"calibration", "loss"}


def test_the_steps_give_what_compile_gives(model: nn.Module, tmp_path: Path) -> None:
    sample = image()
    whole = fxprune.compile(model, sample, 0.4)
    plan = fxprune.plan(model, sample, 0.4)
    assert fxprune.report(whole).plan == plan
    plan.save(tmp_path / "plan.json")
    parts = fxprune.apply(model, sample, fxprune.Plan.load(tmp_path / "plan.json"))
    assert parts.code == whole.code
    assert all(torch.equal(whole.state_dict()[n], t) for n, t in parts.state_dict().items())
    report = fxprune.report(parts)
    assert (report.ratio, report.budget, report.proof is not None) == (0.4, "macs", True)
    assert report.macs_after == fxprune.report(whole).macs_after


def test_a_plan_made_by_hand_without_settings_can_be_applied(model: nn.Module) -> None:
    plan = fxprune.plan(model, image(), 0.4)
    bare = fxprune.Plan(plan.keep, plan.groups, plan.shapes, {})
    report = fxprune.report(fxprune.apply(model, image(), bare))
    assert report.ratio is None
    assert "nan" not in str(report)
    assert report.achieved > 0.4


@pytest.mark.parametrize("settings", [{"seed": "x"}, {"seed": 1.5}, {"ratio": "x"}, {"budget": 3}, {"budget": "x"}])
def test_settings_of_a_plan_that_cannot_be(model: nn.Module, settings: dict[str, Any]) -> None:
    plan = fxprune.plan(model, image(), 0.4)
    with pytest.raises(FxpruneError, match="the plan says|unknown budget"):
        fxprune.apply(model, image(), fxprune.Plan(plan.keep, plan.groups, plan.shapes, settings))


def test_a_plan_says_for_every_tensor_what_stays(model: nn.Module, pruned: fx.GraphModule) -> None:
    plan = fxprune.report(pruned).plan
    assert plan is not None
    full, narrow = model.state_dict(), pruned.state_dict()
    for name, tensor in narrow.items():
        expected = full[name]
        for dim, index in enumerate(plan.keep[name]):
            expected = expected if index is None else expected.index_select(dim, index)
        assert torch.equal(tensor, expected), name


# -- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", ["macs", "params", "channels"])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8])
def test_the_budget_is_met_and_hardly_overshot(budget: str, ratio: float) -> None:
    layers = [nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 96, 3), nn.ReLU(), nn.Conv2d(96, 64, 3), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()
    report = fxprune.report(fxprune.compile(model, image(), ratio, budget=budget, round_to=1, verify=False))
    assert report.budget_after <= (1 - ratio) * report.budget_before
    assert report.achieved - ratio < 0.02


def test_ratio_zero_is_an_equal_copy(model: nn.Module) -> None:
    model.eval()
    copied = fxprune.compile(model, image(), 0)
    x = image(3, 16)
    assert torch.equal(copied(x), model(x))
    assert not storages(copied) & storages(model)
    assert fxprune.report(copied).achieved == 0


def test_ratio_zero_needs_nothing_to_prune() -> None:
    copied = fxprune.compile(nn.Linear(8, 8), torch.randn(2, 8), 0)
    assert fxprune.report(copied).groups == ()


def test_excluded_outputs_stay_and_their_inputs_follow(model: nn.Module) -> None:
    pruned = fxprune.compile(model, image(), 0.3, exclude=["expand"])
    assert pruned.expand.weight.shape[0] == 32
    assert pruned.expand.weight.shape[1] < 16


def test_patterns_may_come_from_a_generator(model: nn.Module) -> None:
    pruned = fxprune.compile(model, image(), 0.3, exclude=(name for name in ["expand", "head"]))
    assert pruned.expand.weight.shape[0] == 32
    assert fxprune.report(pruned).settings["exclude"] == ["expand", "head"]


def test_residual_streams_can_be_left_alone(model: nn.Module) -> None:
    pruned = fxprune.compile(model, image(), 0.3, residual="inner")
    assert pruned.project.weight.shape[0] == 16
    assert pruned.project.weight.shape[1] < 32


def test_limits_hold(model: nn.Module) -> None:
    pruned = fxprune.compile(model, image(), 0.4, round_to=4, min_channels=8, max_ratio=0.6)
    for row in fxprune.report(pruned).groups:
        assert row.after % 4 == 0
        assert row.after >= 8
        assert row.after >= 0.4 * row.before


def test_uniform_takes_the_same_share_of_each(model: nn.Module) -> None:
    rows = fxprune.report(fxprune.compile(model, image(), 0.5, scope="uniform")).groups
    shares = [row.after / row.before for row in rows]
    assert max(shares) - min(shares) < 0.1


def test_the_random_criterion_follows_the_seed(model: nn.Module) -> None:
    plans = [fxprune.plan(model, image(), 0.4, criterion="random", seed=seed) for seed in (0, 0, 1, np.int64(1))]
    assert plans[0] == plans[1] != plans[2]
    assert plans[2] == plans[3]


def test_a_custom_criterion(model: nn.Module) -> None:
    class LastStay:
        name = "last"

        def score(self, group: Any, tensors: Any, graph: Any) -> np.ndarray:
            return np.arange(group.size, dtype=np.float64)

    plan = fxprune.plan(model, image(), 0.4, criterion=LastStay(), scope="uniform")
    sizes = {group.name: group.size for group in fxprune.analyze(model, image()).groups}
    assert all(kept == tuple(range(sizes[name] - len(kept), sizes[name])) for name, kept in plan.groups.items())


def test_progress_goes_to_standard_error_and_only_when_asked(
    model: nn.Module, capfd: pytest.CaptureFixture[str]
) -> None:
    fxprune.compile(model, image(), 0.3)
    assert capfd.readouterr() == ("", "")
    fxprune.compile(model, image(), 0.3, progress=True)
    assert capfd.readouterr().out == ""
    fxprune.compile(model, image(), 0.3, progress=False)
    assert capfd.readouterr() == ("", "")


# -- the report -------------------------------------------------------------------------------------------------------


def test_the_report_says_what_was_done(pruned: fx.GraphModule) -> None:
    report = fxprune.report(pruned)
    assert (report.ratio, report.budget, report.network) == (0.5, "macs", "ConvNet")
    assert 0.5 <= report.achieved < 0.6
    assert report.parameters_after == sum(p.numel() for p in pruned.parameters())
    assert report.proof is not None
    assert report.proof.relative_error < report.proof.tolerance
    assert list(report.seconds) == ["capture", "analyze", "score", "plan", "rewrite", "verify", "report"]
    assert report.settings["criterion"]
    assert {pin.reason for pin in report.pinned} >= {"it is a dim of the network's input"}
    text = str(report)
    assert "50" in text
    assert "ConvNet" in text


def test_without_a_proof_the_report_says_so(model: nn.Module) -> None:
    report = fxprune.report(fxprune.compile(model, image(), 0.3, verify=False))
    assert report.proof is None
    assert report.unproven == "verify=False"
    assert "verify" not in report.seconds


# -- the result -------------------------------------------------------------------------------------------------------


def test_names_and_types_are_those_of_the_original(model: nn.Module, pruned: fx.GraphModule) -> None:
    full = model.state_dict()
    assert pruned.state_dict().keys() == full.keys()
    assert all(t.dtype == full[n].dtype for n, t in pruned.state_dict().items())
    assert [n for n, _ in pruned.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert type(pruned).__name__ == "ConvNet"
    assert isinstance(pruned, fx.GraphModule)


def test_it_reads_like_the_source(pruned: fx.GraphModule) -> None:
    assert "self.depthwise(" in pruned.code
    assert "self.head(" in pruned.code
    assert "adaptive_avg_pool2d" in pruned.code
    for word in ("meta", "cpu", "aten", "fxprune"):
        assert word not in pruned.code


def test_it_runs_at_other_batch_sizes_and_resolutions(pruned: fx.GraphModule) -> None:
    for batch, size in ((1, 12), (5, 12), (3, 20)):
        assert pruned(image(batch, size)).shape == (batch, 10)


@pytest.mark.parametrize("training", [False, True])
def test_it_trains(model: nn.Module, training: bool) -> None:
    result = fxprune.compile(model.train(training), image(), 0.5).train()
    assert all(module.training for module in result.modules())
    optimiser = torch.optim.AdamW(result.parameters(), lr=0.01)
    x, y = image(16), torch.arange(16) % 10
    before = result.get_buffer("stem.1.running_mean").clone()
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(result(x), y)
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.shape == p.shape for p in result.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not torch.equal(result.get_buffer("stem.1.running_mean"), before)


def test_train_and_eval_differ_as_they_should(pruned: fx.GraphModule) -> None:
    x = image(4)
    assert torch.equal(pruned.eval()(x), pruned(x))
    assert not torch.equal(pruned.train()(x), pruned(x))


@pytest.mark.parametrize("training", [False, True])
def test_a_deep_copy_is_the_same_and_keeps_the_report(pruned: fx.GraphModule, training: bool) -> None:
    pruned.train(training)
    twin = copy.deepcopy(pruned)
    assert twin.training is training
    assert fxprune.report(twin).plan == fxprune.report(pruned).plan
    assert not storages(twin) & storages(pruned)
    assert twin.state_dict().keys() == pruned.state_dict().keys()
    x = image(3)
    assert torch.equal(twin.eval()(x), pruned.eval()(x))


def test_it_can_be_pickled(pruned: fx.GraphModule) -> None:
    twin = pickle.loads(pickle.dumps(pruned))
    x = image(3)
    assert torch.equal(twin(x), pruned(x))
    assert twin.state_dict().keys() == pruned.state_dict().keys()
    assert fxprune.report(twin).plan == fxprune.report(pruned).plan
    buffer = io.BytesIO()
    torch.save(pruned, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), pruned(x))


def test_a_state_dict_can_be_saved_and_loaded(model: nn.Module, pruned: fx.GraphModule) -> None:
    plan = fxprune.report(pruned).plan
    assert plan is not None
    other = fxprune.apply(ConvNet(), image(), plan).eval()
    x = image(3)
    assert not torch.equal(other(x), pruned(x))
    other.load_state_dict(pruned.state_dict())
    for name, buffer in pruned.named_buffers():
        if name not in pruned.state_dict():
            other.get_buffer(name).copy_(buffer)
    assert torch.equal(other(x), pruned(x))


def test_it_is_an_ordinary_graph_module(pruned: fx.GraphModule) -> None:
    x = image(3)
    assert torch.equal(fx.Interpreter(pruned).run(x), pruned(x))
    pruned.graph.lint()
    pruned.recompile()
    assert torch.equal(fx.symbolic_trace(pruned)(x), pruned(x))
    assert pruned.get_submodule("head") is pruned.head


def test_torch_compile(pruned: fx.GraphModule) -> None:
    x = image(3)
    compiled = torch.compile(pruned, backend="eager")
    assert torch.allclose(compiled(x), pruned(x), atol=1e-6)
    pruned.train()
    F.cross_entropy(torch.compile(pruned, backend="eager")(x), torch.tensor([1, 2, 3])).backward()
    assert all(p.grad is not None for p in pruned.parameters())


def test_torch_export(pruned: fx.GraphModule) -> None:
    dynamic = {"x": {0: torch.export.Dim("batch", min=2)}}
    exported = torch.export.export(pruned, (image(3),), dynamic_shapes=dynamic).module()
    for batch in (3, 5):
        x = image(batch)
        assert torch.allclose(exported(x), pruned(x), atol=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_it_can_be_scripted_by_tracing(pruned: fx.GraphModule) -> None:
    x = image(2)
    assert torch.allclose(torch.jit.trace(pruned, x)(x), pruned(x), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_moves_to_other_types(pruned: fx.GraphModule, dtype: torch.dtype) -> None:
    assert pruned.to(dtype)(image().to(dtype)).dtype == dtype


def test_it_can_be_pruned_again(pruned: fx.GraphModule) -> None:
    again = fxprune.compile(pruned, image(), 0.3)
    first, second = fxprune.report(pruned), fxprune.report(again)
    assert second.macs_before == first.macs_after
    assert second.achieved >= 0.3
    assert again(image(3)).shape == (3, 10)
    assert again.state_dict().keys() == pruned.state_dict().keys()


def test_compiling_twice_gives_the_same(model: nn.Module) -> None:
    sample = image()
    first, second = (fxprune.compile(model, sample, 0.5) for _ in range(2))
    assert first.code == second.code
    assert fxprune.report(first).plan == fxprune.report(second).plan


def test_editors_complete_every_name() -> None:
    from fxprune.cost.budgets import known_budgets
    from fxprune.recovery import known_recoveries
    from fxprune.saving.exporting import _SIZES
    from fxprune.saving.formats import FORMATS

    def names(annotation: Any) -> set[str]:
        return set(get_args(get_args(annotation)[0]))

    assert names(Budget) == set(known_budgets())
    assert names(CriterionName) == {"auto", "zeros", *fxprune.known_criteria()}
    assert names(RecoveryName) == {"auto", *known_recoveries()}
    assert set(get_args(FormatName)) == set(FORMATS)
    assert set(get_args(FreeSize)) == set(_SIZES)
