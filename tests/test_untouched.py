"""The caller's model and process are the same before and after, however a pass ends; the result shares nothing."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxprune
from fxprune import pipeline
from tests.snapshots import process, snapshot, storages


class Residual(nn.Module):
    """Two branches, a shared layer, a tie, buffers of all kinds, a frozen part and mixed modes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.branch = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12), nn.Dropout(0.2))
        self.head = nn.Linear(12, 12)
        self.again = nn.Linear(12, 12, bias=False)
        self.again.weight = self.head.weight
        self.last = nn.Linear(12, 5)
        self.register_buffer("scale", torch.full((12, 1, 1), 0.5))
        self.register_buffer("hidden", torch.ones(12), persistent=False)
        self.plain = torch.arange(12.0)
        self.calls = 0
        self.notes = ["a", {"b": 1}]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = (x + self.branch(x) * self.scale).mean((2, 3)) + self.hidden + self.plain.to(x)
        return self.last(self.again(F.gelu(self.head(x))))


def a_used_model() -> nn.Module:
    """A model in the middle of its life: gradients, mixed modes, frozen parts."""
    model = Residual()
    model(image()).sum().backward()
    model.branch[1].eval()
    model.norm.weight.requires_grad_(False)
    model.stem.requires_grad_(False)
    model.scale.requires_grad_(False)
    return model


def image(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 8, 8)


def unchanged(model: nn.Module, action: Callable[[], Any]) -> Any:
    """Run, and check that neither model nor process notices."""
    before, around = snapshot(model), process()
    try:
        return action()
    finally:
        now, here = snapshot(model), process()
        assert {k for k in before | now if before.get(k) != now.get(k)} == set()
        assert {k for k in around | here if around.get(k) != here.get(k)} == set()


# -- success ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_entry_point_leaves_model_and_process_unchanged(batch: int, criterion: str) -> None:
    model, sample = a_used_model(), image(batch)
    unchanged(model, lambda: fxprune.analyze(model, sample))
    plan = unchanged(model, lambda: fxprune.plan(model, sample, 0.4, criterion=criterion))
    unchanged(model, lambda: fxprune.apply(model, sample, plan))
    unchanged(model, lambda: fxprune.compile(model, sample, 0.4, criterion=criterion))


def test_the_sample_is_only_read() -> None:
    sample = image().requires_grad_(True)
    bits, version = sample.detach().clone(), sample._version
    fxprune.compile(a_used_model(), {"x": sample}, 0.4)
    assert torch.equal(sample, bits)
    assert sample.grad is None
    assert sample.requires_grad
    assert sample._version == version


@pytest.mark.parametrize("ratio", [0.0, 0.4])
def test_the_result_shares_no_storage(ratio: float) -> None:
    model = a_used_model()
    pruned = fxprune.compile(model, image(), ratio)
    assert storages(pruned)
    assert not storages(pruned) & storages(model)
    before = snapshot(model)
    with torch.no_grad():
        for tensor in (*pruned.parameters(), *pruned.buffers()):
            tensor.zero_()
    assert snapshot(model) == before


def test_results_share_no_storage_with_each_other_and_are_equal() -> None:
    model, sample = a_used_model(), image()
    first, second = (fxprune.compile(model, sample, 0.4) for _ in range(2))
    assert not storages(first) & storages(second)
    assert first.state_dict().keys() == second.state_dict().keys()
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert first.code == second.code


def test_the_graph_of_an_analysis_holds_no_tensor_of_the_model() -> None:
    model = a_used_model()
    graph = fxprune.analyze(model, image())
    with torch.no_grad():
        for tensor in graph.captured.constants.values():
            tensor.zero_()
    assert float(model.plain.sum()) == 66.0


@pytest.mark.parametrize("training", [False, True])
def test_the_result_has_the_mode_of_the_model(training: bool) -> None:
    model = Residual().train(training)
    pruned = fxprune.compile(model, image(), 0.3)
    assert pruned.training is training
    assert all(module.training is training for module in pruned.modules())


# -- failure ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [RuntimeError("half way"), KeyboardInterrupt(), MemoryError(), SystemExit(3)], ids=repr
)
@pytest.mark.parametrize(
    "step", ["trace", "analyze_capture", "judge", "allocate", "rewrite_certified", "prove_plan", "summarise"]
)
def test_a_pass_that_raises(monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(pipeline, step, fail)
    model, sample = a_used_model(), image()
    with pytest.raises(type(error)):
        unchanged(model, lambda: fxprune.compile(model, sample, 0.4))


class Interrupted(nn.Module):
    """Raises in the n-th call of its forward, whoever calls it."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)
        self.register_buffer("count", torch.zeros(()))
        self.error = [error]

    def __deepcopy__(self, memo: dict[int, Any]) -> Interrupted:
        copied = Interrupted(self.error[0])
        copied.first, copied.second = (__import__("copy").deepcopy(m, memo) for m in (self.first, self.second))
        copied.count = memo.get(id(self.count), self.count.clone())
        return copied

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.dropout(self.first(x), 0.5, self.training)
        # The error counts the calls, as nobody looks into an error for state.
        self.error[0].remaining -= 1  # type: ignore[attr-defined]
        if self.error[0].remaining < 0:  # type: ignore[attr-defined]
            raise self.error[0]
        return self.second(x)


@pytest.mark.parametrize("calls", range(5))
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("half way")], ids=repr)
def test_a_forward_that_raises_in_any_of_its_calls(error: BaseException, calls: int) -> None:
    model, sample = Interrupted(error), torch.randn(2, 8)
    error.remaining = calls  # type: ignore[attr-defined]
    with contextlib.suppress(KeyboardInterrupt, fxprune.FxpruneError):
        unchanged(model, lambda: fxprune.compile(model, sample, 0.4))
    error.remaining = 100  # type: ignore[attr-defined]
    unchanged(model, lambda: fxprune.compile(model, sample, 0.4))


# -- forwards with side effects ---------------------------------------------------------------------------------------


class Busy(nn.Module):
    """Counts, prints, writes to its buffers and keeps its last activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 12), nn.Linear(12, 4)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("average", torch.zeros(12))
        self.calls = 0
        self.history: list[tuple[int, ...]] = []
        self.last: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.history.append(tuple(x.shape))
        print(f"call {self.calls} with {tuple(x.shape)}")
        hidden = self.first(x).relu()
        self.seen += 1
        self.average.mul_(0.9).add_(hidden.detach().mean(0), alpha=0.1)
        self.last = hidden
        return self.second(hidden + self.average)


def test_a_forward_with_side_effects_has_none_on_the_caller(capsys: pytest.CaptureFixture[str]) -> None:
    model, sample = Busy().eval(), torch.randn(2, 8)
    pruned = unchanged(model, lambda: fxprune.compile(model, sample, 0.3))
    assert fxprune.report(pruned).proof is not None
    pruned(torch.randn(2, 8))
    pruned(torch.randn(2, 8))
    assert int(pruned.seen) == 2
    assert float(pruned.average.abs().sum()) > 0


class Drawing(nn.Module):
    """Draws numbers of every kind, which make no difference."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x).relu()
        return self.last(hidden * 2 if random.random() + np.random.rand() < 0 else hidden)


@pytest.mark.parametrize(
    "options",
    [{"keep_class": True}, {"budget": "latency", "ratio": 0.0}, {"verify": "full"}, {"recover": "bias"}],
    ids=str,
)
def test_a_forward_that_draws_advances_no_generator(options: dict[str, Any]) -> None:
    model, data = Drawing().eval(), [torch.randn(4, 8)]
    unchanged(model, lambda: fxprune.compile(model, data[0], calibration=data, **{"ratio": 0.3, **options}))


def test_a_model_with_last_activations_can_still_be_compiled() -> None:
    model, sample = Busy(), torch.randn(2, 8)
    model(sample)
    unchanged(model, lambda: fxprune.compile(model, sample, 0.3))


# -- several threads --------------------------------------------------------------------------------------------------


def run_all(*actions: Callable[[], None]) -> None:
    """Run actions in threads at once and raise what any of them raised."""
    errors: list[BaseException] = []

    def guarded(action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as error:  # to be raised where the test sees it
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]


def test_two_threads_compile_while_a_third_runs_another_model() -> None:
    models, sample = [a_used_model(), a_used_model()], image()
    other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)).eval()
    expected = other(sample)
    states = [snapshot(model) for model in (*models, other)]
    before = process()
    finished: list[int] = []
    results: dict[int, Any] = {}
    runs = [0]

    def compile_one(number: int) -> None:
        try:
            results[number] = fxprune.compile(models[number], sample, 0.4)
        finally:
            finished.append(number)

    def infer() -> None:
        while len(finished) < len(models) or runs[0] < 5:
            assert torch.allclose(other(sample), expected, rtol=1e-5, atol=1e-6)
            assert other(sample).requires_grad
            runs[0] += 1

    run_all(lambda: compile_one(0), lambda: compile_one(1), infer)
    assert [snapshot(model) for model in (*models, other)] == states
    assert process() == before
    alone = [fxprune.compile(model, sample, 0.4) for model in models]
    for number, pruned in enumerate(alone):
        assert fxprune.report(pruned).plan == fxprune.report(results[number]).plan
        assert pruned.code == results[number].code


def test_the_same_model_is_compiled_by_two_threads() -> None:
    model, sample = a_used_model(), image()
    before = snapshot(model)
    plans: list[Any] = []
    run_all(*[lambda: plans.append(fxprune.report(fxprune.compile(model, sample, 0.4)).plan)] * 2)
    assert plans[0] == plans[1]
    assert snapshot(model) == before
