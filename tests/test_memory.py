"""The memory budget: worked numbers, and what really is alive while a network runs."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fxprune
from fxprune.cost.memory import memory_model


def memory_of(model: nn.Module, sample: Any) -> float:
    return memory_model(fxprune.analyze(model.eval(), sample)).full


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1, bias=False)
        self.inner = nn.Conv2d(8, 20, 1, bias=False)
        self.outer = nn.Conv2d(20, 8, 1, bias=False)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.outer(self.inner(x))
        return self.head(x.mean((2, 3)))


def test_worked_numbers() -> None:
    # A chain: while a layer runs, its input and its output are alive.
    chain = nn.Sequential(nn.Linear(10, 30), nn.Linear(30, 20), nn.Linear(20, 5))
    parameters = 4 * (10 * 30 + 30 + 30 * 20 + 20 + 20 * 5 + 5)
    assert memory_of(chain, torch.randn(7, 10)) == parameters + 4 * 7 * (30 + 20)
    # A residual: the stream waits while the wide layer and then the narrow one run.
    parameters = 4 * (3 * 8 + 8 * 20 + 20 * 8 + 8 * 4 + 4)
    assert memory_of(Residual(), torch.randn(2, 3, 6, 6)) == parameters + 4 * 2 * 36 * (8 + 20 + 8)
    # Half precision halves it.
    half = memory_of(Residual().bfloat16(), torch.randn(2, 3, 6, 6, dtype=torch.bfloat16))
    assert 2 * half == parameters + 4 * 2 * 36 * (8 + 20 + 8)


def test_views_and_updates_in_place_take_nothing() -> None:
    plain = nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 3))
    more = nn.Sequential(
        nn.Linear(6, 12), nn.ReLU(inplace=True), nn.Unflatten(1, (3, 4)), nn.Flatten(), nn.Linear(12, 3)
    )
    assert memory_of(plain, torch.randn(5, 6)) == memory_of(more, torch.randn(5, 6))


class Live(TorchDispatchMode):
    """The most bytes of results that are alive at once, each storage once, those that are given left out."""

    def __init__(self, given: list[torch.Tensor]) -> None:
        super().__init__()
        self.known = {t.untyped_storage()._cdata for t in given}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in torch.utils._pytree.tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in self.known:
                self.add(leaf.untyped_storage())
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.now += size
        self.most = max(self.most, self.now)

        def gone() -> None:
            self.known.discard(key)
            self.now -= size

        weakref.finalize(storage, gone)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.6])
def test_computed_activations_are_the_live_ones(ratio: float) -> None:
    torch.manual_seed(0)
    model, sample = Residual().eval(), torch.randn(3, 3, 10, 10)
    pruned = fxprune.compile(model, sample, ratio, budget="memory", verify=False)
    report = fxprune.report(pruned)
    assert report.achieved >= ratio
    parameters = list(pruned.parameters())
    with torch.no_grad(), Live([*parameters, sample]) as live:
        pruned(sample)
    weights = sum(p.numel() * p.element_size() for p in parameters)
    own_input = sample.numel() * sample.element_size()
    # The caller keeps the sample; the network counts it until it was read.
    assert weights + live.most <= report.budget_after <= weights + live.most + own_input


def test_wide_layers_shrink_first_if_memory_is_the_budget() -> None:
    torch.manual_seed(0)
    sample = torch.randn(1, 3, 32, 32)
    by_memory = fxprune.plan(Residual().eval(), sample, 0.3, budget="memory")
    assert len(by_memory.groups["inner"]) < 20


def test_the_command_line_takes_it(tmp_path: Any) -> None:
    report = fxprune.report(
        fxprune.compile(Residual().eval(), torch.randn(1, 3, 8, 8), 0.4, budget="memory", round_to=2)
    )
    assert report.achieved >= 0.4
    assert "of memory removed" in str(report)
