"""The next step of a migrated optimiser is that of the masked original's."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.errors import PlanError
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
