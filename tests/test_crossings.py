"""Which groups run through something that mixes channels, and which elements are taken by their number."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxprune
from fxprune.errors import PlanError
from tests.rules.cases import Between

Op = Callable[[torch.Tensor], torch.Tensor]

MIXING: dict[str, Op] = {
    "layer norm": nn.LayerNorm(8),
    "group norm": lambda h: F.group_norm(h.flatten(0, 1), 2).unflatten(0, h.shape[:2]),
    "rms norm": nn.RMSNorm(8),
    "softmax": lambda h: h.softmax(-1),
    "mean": lambda h: h * h.mean(-1, keepdim=True),
    "product": lambda h: (h @ h.transpose(1, 2)) @ h,
    "einsum": lambda h: torch.einsum("bic,bjc->bij", h, h) @ h,
    "attention": lambda h: F.scaled_dot_product_attention(h, h, h),
    "normalize": lambda h: F.normalize(h, dim=-1),
    "sum so far": lambda h: h.cumsum(-1),
    "norm": lambda h: h / h.norm(dim=-1, keepdim=True),
    "maximum": lambda h: h - h.amax(-1, keepdim=True),
}
KEEPING_APART: dict[str, Op] = {
    "relu": torch.relu,
    "sum": lambda h: h + h.tanh(),
    "softmax over tokens": lambda h: h.softmax(1),
    "mean over tokens": lambda h: h - h.mean(1, keepdim=True),
    "batch norm": nn.Sequential(nn.Flatten(0, 1), nn.BatchNorm1d(8), nn.Unflatten(0, (-1, 4))),
}


def crosses(op: Op) -> bool:
    net = Between(nn.Linear(5, 8), op, nn.Linear(8, 3)).eval()
    graph = fxprune.analyze(net, torch.randn(2, 4, 5))
    groups = [group for group in graph.groups if ("first.weight", 0) in {(m.tensor, m.dim) for m in group.members}]
    assert groups
    return any(group.crosses_norm for group in groups)


@pytest.mark.parametrize("name", MIXING)
def test_ops_that_mix_channels_are_noted(name: str) -> None:
    assert crosses(MIXING[name])


@pytest.mark.parametrize("name", KEEPING_APART)
def test_ops_that_keep_channels_apart_are_not_noted(name: str) -> None:
    assert not crosses(KEEPING_APART[name])


TAKEN: dict[str, Op] = {
    "select": lambda h: h + h.select(-1, 3).unsqueeze(-1),
    "number": lambda h: h + h[..., 3].unsqueeze(-1),
    "negative number": lambda h: h + h[..., -5].unsqueeze(-1),
    "unbind": lambda h: h + h.unflatten(-1, (8, 1)).unbind(-2)[3],
    "narrow and squeeze": lambda h: h + h.narrow(-1, 3, 1),
}


@pytest.mark.parametrize("name", TAKEN)
def test_channels_taken_by_number_stay(name: str) -> None:
    graph = fxprune.analyze(Between(nn.Linear(5, 8), TAKEN[name], nn.Linear(8, 3)), torch.randn(2, 5))
    if name == "unbind":
        assert graph.groups == ()
    for group in graph.groups:
        assert graph.channels(group, "first.weight", 0)[3] == -1


class Sliced(nn.Module):
    """Every second channel is read by a sum, which has no weight that would miss them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        return self.last(h) + h[:, ::2].sum(1, keepdim=True)


def test_a_plan_that_empties_an_activation_is_refused() -> None:
    graph = fxprune.analyze(Sliced(), torch.randn(2, 5))
    even = np.arange(8) % 2 == 0
    masks = {group: ~even[graph.channels(group, "first.weight", 0) >= 0] for group in graph.groups}
    with pytest.raises(PlanError, match="activation"):
        fxprune.Plan.from_masks(graph, masks, {})


class Choosing(nn.Module):
    """The output shows which code is the largest, the gradient all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scores, self.last = nn.Linear(6, 16), nn.Linear(16, 5), nn.Linear(16, 3)
        self.codes = nn.Parameter(torch.randn(5, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        logits = self.scores(h)
        largest = F.one_hot(logits.argmax(-1), 5).to(h)
        share = F.gumbel_softmax(logits, tau=0.7, hard=True) if self.training else largest
        chosen: torch.Tensor = self.last(share @ self.codes + h)
        return chosen


@pytest.mark.parametrize("seed", range(3))
def test_zeros_that_only_gradients_show_are_no_fault(seed: int) -> None:
    torch.manual_seed(seed)
    model = Choosing().eval()
    pruned = fxprune.remove(model, torch.randn(3, 6), {"scores": [1], "first": [0, 5, 9]})
    assert fxprune.report(pruned).proof is not None
