"""The next step of a migrated optimiser is that of the masked original's."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.errors import OptionError, PlanError
from tests.criteria.calibrated import Small, images


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
        lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True),
        lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p, 1e-2, momentum=0.5),
    ],
)
def test_the_next_step_is_the_masked_originals(make: Callable[..., torch.optim.Optimizer]) -> None:
    model = Small().eval()
    optimizer = make([{"params": list(model.parameters())[:3]}, {"params": list(model.parameters())[3:], "lr": 1e-3}])
    x, y = images(12)
    for _ in range(3):
        step(model, optimizer, x, y)
    pruned = fxprune.compile(model, x[:2], 0.4)
    plan = fxprune.report(pruned).plan
    assert plan is not None
    migrated = fxprune.migrate(optimizer, plan, model, pruned)
    masked, masking = mask(model, optimizer, plan)
    step(pruned, migrated, x, y)
    step(masked, masking, x, y)
    for name, value in pruned.named_parameters():
        expected = dict(masked.named_parameters())[name].detach()
        for dim, index in enumerate(plan.keep[name]):
            expected = expected if index is None else expected.index_select(dim, index)
        torch.testing.assert_close(value.detach(), expected, rtol=1e-9, atol=1e-12)
    assert [group["lr"] for group in migrated.param_groups] == [group["lr"] for group in optimizer.param_groups]
    assert type(migrated) is type(optimizer)


def mask(
    model: nn.Module, optimizer: torch.optim.Optimizer, plan: fxprune.Plan
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The original with everything removed set to zero, and its optimiser."""
    masked, masking = copy.deepcopy((model, optimizer))
    tensors = {**dict(masked.named_parameters()), **dict(masked.named_buffers())}
    with torch.no_grad():
        for name, dims in plan.keep.items():
            for dim, index in enumerate(dims):
                if index is not None and not name.endswith("running_var"):
                    stays = torch.zeros(tensors[name].shape[dim], dtype=torch.bool)
                    stays[index] = True
                    tensors[name].index_fill_(dim, torch.nonzero(~stays).reshape(-1), 0)
    return masked, masking


def test_a_plan_for_another_network_is_refused() -> None:
    model = Small()
    plan = fxprune.plan(model, images(2)[0], 0.3)
    other = nn.Linear(3, 4)
    with pytest.raises(PlanError, match="another network"):
        fxprune.migrate(torch.optim.SGD(other.parameters(), 0.1), plan, other, other)


class Partly(nn.Module):
    """A network with a layer and a parameter that its forward does not use, and one layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.tied: nn.Parameter | None = None
        self.idle = nn.Linear(8, 3)
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 2)
        self.alone = nn.Parameter(torch.ones(3))
        self.tied = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())  # type: ignore[no-any-return]


def test_parameters_that_the_forward_does_not_use_are_left_out() -> None:
    model, x = Partly().eval(), torch.randn(12, 6)
    optimizer = torch.optim.Adam([{"params": [*model.idle.parameters(), model.alone]}, {"params": []}])
    optimizer.param_groups[1]["params"] = [*model.first.parameters(), *model.last.parameters()]
    for _ in range(2):
        step(model, optimizer, x, torch.zeros(12, dtype=torch.long))
    pruned = fxprune.compile(model, x, 0.4)
    plan = fxprune.report(pruned).plan
    assert plan is not None
    migrated = fxprune.migrate(optimizer, plan, model, pruned)
    assert migrated.param_groups[0]["params"] == []
    held = [id(parameter) for parameter in pruned.parameters()]
    assert sorted(id(p) for p in migrated.param_groups[1]["params"]) == sorted(held)
    assert {id(parameter) for parameter in migrated.state} == set(held)
    for old, new in zip(optimizer.param_groups[1]["params"], migrated.param_groups[1]["params"], strict=True):
        assert migrated.state[new]["exp_avg"].shape == new.shape
        assert migrated.state[new]["step"] == optimizer.state[old]["step"]
    step(pruned, migrated, x, torch.zeros(12, dtype=torch.long))


def test_mistakes_are_named() -> None:
    model, x = Small().eval(), images(2)[0]
    pruned, other = (fxprune.compile(model, x, ratio) for ratio in (0.3, 0.6))
    plan, optimizer = fxprune.report(pruned).plan, torch.optim.SGD(model.parameters(), 0.1)
    assert plan is not None
    for network in (other, model):
        with pytest.raises(PlanError, match="the pruned network was not cut by this plan: '.*' has shape"):
            fxprune.migrate(optimizer, plan, model, network)
    with pytest.raises(PlanError, match="plan must be the plan of the cut, .* not NoneType"):
        fxprune.migrate(optimizer, None, model, pruned)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"pruned must be a torch.nn.Module, not NoneType"):
        fxprune.migrate(optimizer, plan, model, None)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="seed must be a whole number, not None"):
        fxprune.recover(pruned, model, "fuse", seed=None)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"must be a torch.optim.Optimizer, not str"):
        fxprune.migrate("adam", plan, model, pruned)  # type: ignore[type-var]
