"""Forward hooks, which are traced with the forward that runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import ModelError
from tests.nets.oracles import masked


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(16, 12, 3)), nn.Conv2d(12, 4, 1)
    ).eval()


def reads(_: nn.Module, __: Any, made: Tensor) -> None:
    assert made.dim() == 4


def changes(_: nn.Module, __: Any, made: Tensor) -> Tensor:
    return made * 2 + made.mean((2, 3), keepdim=True)


@pytest.mark.parametrize("layer", ["0", "2"])
@pytest.mark.parametrize("hook", [reads, changes])
def test_what_a_hook_does_to_values_is_in_the_graph(layer: str, hook: Callable[..., Any]) -> None:
    model, x = net(), torch.randn(2, 3, 9, 9)
    model.get_submodule(layer).register_forward_hook(hook)
    pruned = fxprune.compile(model, x, 0.4)
    report = fxprune.report(pruned)
    assert report.plan is not None
    (row,) = report.opaque
    assert row.name == f"forward hooks of {layer}"
    torch.testing.assert_close(pruned(x), masked(model, report.plan.keep)(x))


def test_a_hook_before_a_layer_is_traced_too() -> None:
    model, x = net(), torch.randn(2, 3, 9, 9)
    model[3].register_forward_pre_hook(lambda _, given: (given[0].clamp(max=0.1),))
    plan = fxprune.report(pruned := fxprune.compile(model, x, 0.4)).plan
    assert plan is not None
    torch.testing.assert_close(pruned(x), masked(model, plan.keep)(x))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.attention, self.out = nn.Linear(8, 16), nn.MultiheadAttention(16, 4), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        out: Tensor = self.out(self.attention(x, x, x, need_weights=False)[0])
        return out


def test_a_hook_on_attention_is_not_lost() -> None:
    model, x = Attending().eval(), torch.randn(5, 2, 8)
    model.attention.register_forward_hook(lambda _, __, made: (made[0] * 3, None))
    torch.testing.assert_close(fxprune.compile(model, x, 0.0)(x), model(x))
    assert fxprune.report(fxprune.compile(model, x, 0.3)).achieved >= 0.3


def test_a_list_that_a_hook_fills_gets_no_tensors_of_a_trace() -> None:
    model, x, seen = net(), torch.randn(2, 3, 9, 9), dict[str, Tensor]()
    model[2].register_forward_hook(lambda _, __, made: seen.update(made=made))
    fxprune.compile(model, x, 0.4)
    assert not seen


def test_a_kept_class_keeps_its_hooks() -> None:
    model, x, seen = net(), torch.randn(2, 3, 9, 9), list[Any]()
    model[0].register_forward_hook(lambda _, __, made: seen.append(made.shape[1]))
    pruned = fxprune.compile(model, x, 0.4, keep_class=True)
    seen.clear()
    pruned(x)
    assert seen == [len(pruned.get_parameter("0.weight"))]


def test_a_hook_that_counts_its_calls_is_refused() -> None:
    model, count = net(), [0]

    def grows(_: nn.Module, __: Any, made: Tensor) -> Tensor:
        count[0] += 1
        return made * count[0]

    model[0].register_forward_hook(grows)
    with pytest.raises(ModelError, match="for its next call"):
        fxprune.compile(model, torch.randn(2, 3, 9, 9), 0.4)
