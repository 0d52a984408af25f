"""Whole experts of a mixture go: the result is the original with the router's logits for them at minus infinity."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.errors import PlanError

EXPERTS, WIDTH, HIDDEN, CHOSEN, GONE = 6, 8, 8, 2, [1, 4]


class Mixture(nn.Module):
    """Experts behind a router, between two layers; ``masked`` experts are never chosen."""

    def __init__(self, masked: list[int] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 3)
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN))
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH))
        self.masked = masked

    def logits(self, h: Tensor) -> Tensor:
        found = self.router(h)
        return found if self.masked is None else found.index_fill(-1, torch.tensor(self.masked), -torch.inf)

    def forward(self, x: Tensor) -> Any:
        h = self.first(x)
        return self.last(h + self.mixed(h))

    def mixed(self, h: Tensor) -> Tensor:
        raise NotImplementedError


class Grouped(Mixture):
    """Rows sorted by expert, gates normed over those that were chosen."""

    def mixed(self, h: Tensor) -> Tensor:
        gates, chosen = self.logits(h).softmax(-1).topk(CHOSEN, -1)
        gates = gates / gates.sum(-1, keepdim=True)
        numbers, order = chosen.reshape(-1).sort(stable=True)
        counts = torch.histc(numbers.float(), bins=EXPERTS, min=0, max=EXPERTS - 1)
        ends = counts.cumsum(0, dtype=torch.int32)
        made = torch._grouped_mm(h[order // CHOSEN], self.up, offs=ends).relu()
        made = torch._grouped_mm(made, self.down, offs=ends) * gates.reshape(-1)[order][:, None]
        return made[order.argsort()].view(-1, CHOSEN, WIDTH).sum(1)


class LookedUp(Mixture):
    """Weights of the chosen experts by number; the softmax is over their logits alone."""

    def mixed(self, h: Tensor) -> Tensor:
        best, chosen = torch.topk(self.logits(h), CHOSEN, dim=-1)
        made = torch.einsum("nw,nkwh->nkh", h, self.up[chosen]).relu()
        made = torch.einsum(
            "nkh,nkhw->nkw", made, self.down.index_select(0, chosen.flatten()).view(*chosen.shape, HIDDEN, WIDTH)
        )
        return (made * best.softmax(-1)[..., None]).sum(1)


class Dispatched(Mixture):
    """One expert for each row, through a table of ones and zeros."""

    def mixed(self, h: Tensor) -> Tensor:
        shares = self.logits(h).softmax(-1)
        table = F.one_hot(shares.argmax(-1), EXPERTS).to(h.dtype)
        made = torch.einsum("nw,ewh->neh", h, self.up).relu()
        made = torch.einsum("neh,ehw->new", made, self.down)
        return (made * (table * shares)[..., None]).sum(1)


class Scattered(Mixture):
    """Gates of all experts, zero but for those that were chosen, and a bias that only chooses."""

    def __init__(self, masked: list[int] | None = None) -> None:
        super().__init__(masked)
        self.bias = nn.Parameter(torch.randn(EXPERTS))

    def mixed(self, h: Tensor) -> Tensor:
        scores = self.logits(h).sigmoid()
        offered = scores + self.bias
        if self.masked is not None:
            offered = offered.index_fill(-1, torch.tensor(self.masked), -torch.inf)
        chosen = offered.topk(CHOSEN, -1)[1]
        gates = torch.zeros_like(scores).scatter(-1, chosen, scores.gather(-1, chosen))
        made = torch.matmul(torch.matmul(h, self.up).relu(), self.down)  # (experts, n, width)
        return torch.einsum("enw,ne->nw", made, gates)


class Balanced(Mixture):
    """Gates by how many rows an expert has, counted by number."""

    def mixed(self, h: Tensor) -> Tensor:
        best, chosen = self.logits(h).topk(CHOSEN, -1)
        load = torch.bincount(chosen.flatten(), minlength=EXPERTS).to(h.dtype)
        made = torch.einsum("nw,nkwh->nkh", h, self.up[chosen]).relu()
        made = torch.einsum("nkh,nkhw->nkw", made, self.down[chosen])
        return (made * (best.softmax(-1) / load[chosen])[..., None]).sum(1)


class Dense(Mixture):
    """All experts by their share."""

    def mixed(self, h: Tensor) -> Tensor:
        made = torch.matmul(torch.matmul(h, self.up).relu(), self.down)
        return torch.einsum("enw,ne->nw", made, self.logits(h).softmax(-1))


KINDS = [Grouped, LookedUp, Dispatched, Scattered, Balanced, Dense]


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_the_original_with_the_logits_of_what_went_at_minus_infinity(kind: type[Mixture]) -> None:
    model, masked = kind().eval(), kind(GONE).eval()
    pruned = fxprune.remove(model, torch.randn(5, 4), {"router": GONE})
    stays = [n for n in range(EXPERTS) if n not in GONE]
    for name in ("router.weight", "router.bias", "up", "down"):
        assert torch.equal(pruned.get_parameter(name), model.get_parameter(name)[stays])
    for rows in (5, 40):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(pruned(x), masked(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_parameters_as_budget_take_experts_and_leave_as_many_as_a_row_chooses(kind: type[Mixture]) -> None:
    pruned = fxprune.compile(kind().eval(), torch.randn(5, 4), 0.4, budget="params", exclude=["first"], recover=None)
    assert CHOSEN <= len(pruned.get_parameter("up")) < EXPERTS
    with pytest.raises(PlanError, match="fewer than 2"):
        fxprune.remove(kind().eval(), torch.randn(5, 4), {"router": list(range(1, EXPERTS))})


def test_multiply_accumulates_as_budget_take_no_experts() -> None:
    pruned = fxprune.compile(LookedUp().eval(), torch.randn(5, 4), 0.2, recover=None)
    assert len(pruned.get_parameter("up")) == EXPERTS


class Winners(nn.Module):
    """Of the hidden units only the largest are passed on."""

    def __init__(self, masked: Tensor | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.hidden, self.last = nn.Linear(4, 24), nn.Linear(24, 16), nn.Linear(16, 3)
        self.masked = masked

    def forward(self, x: Tensor) -> Tensor:
        h = self.hidden(self.first(x).relu())
        h = h if self.masked is None else h.masked_fill(self.masked, -torch.inf)
        best, chosen = h.topk(5, -1)
        return self.last(torch.zeros_like(h).scatter(-1, chosen, best))


def test_hidden_units_that_win_are_channels_for_any_budget() -> None:
    model, sample = Winners().eval(), torch.randn(5, 4)
    plan = fxprune.plan(model, sample, 0.5)
    pruned = fxprune.apply(model, sample, plan)
    first, winners = (plan.keep[f"{name}.weight"][0] for name in ("first", "hidden"))
    assert first is not None
    assert winners is not None
    assert CHOSEN < len(winners) < 16
    masked = Winners(torch.isin(torch.arange(16), winners, invert=True)).eval()
    masked.hidden.weight.data[:, torch.isin(torch.arange(24), first, invert=True)] = 0
    x = torch.randn(40, 4)
    torch.testing.assert_close(pruned(x), masked(x))


class Told(Mixture):
    """What it does with the numbers of experts hangs on ``use``."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.use = use

    def forward(self, x: Tensor) -> Any:
        h = self.first(x)
        logits = self.router(h)
        gates, chosen = logits.softmax(-1).topk(CHOSEN, -1)
        made = (torch.einsum("nw,nkwh->nkh", h, self.up[chosen]) * gates[..., None]).sum(1)
        if self.use == "logits":
            return made, logits
        if self.use == "numbers":
            return made, chosen.flatten()
        if self.use == "comparison":
            return made * (chosen == 2).any(-1, keepdim=True)
        if self.use == "arithmetic":
            return made * (chosen % 3).sum(-1, keepdim=True)
        if self.use == "count":
            return made + torch.histc(chosen.float(), bins=EXPERTS - 1, min=0, max=EXPERTS - 2).sum()
        if self.use == "write":
            chosen[0, 0] = 3
            return made + self.down[chosen].sum((1, 2))
        raise AssertionError(self.use)


@pytest.mark.parametrize("use", ["logits", "numbers", "comparison", "arithmetic", "count", "write"])
def test_experts_that_the_code_tells_apart_stay(use: str) -> None:
    graph = fxprune.analyze(Told(use).eval(), torch.randn(5, 4))
    assert all(member.tensor != "router.weight" or member.dim for group in graph.groups for member in group.members)
    reason = graph.explain("router.weight")
    assert ("output" if use in ("logits", "numbers") else "number") in reason


@pytest.mark.parametrize(
    ("family", "implementation"), [("mixtral", "grouped_mm"), ("qwen3_moe", "batched_mm"), ("olmoe", "grouped_mm")]
)
def test_experts_of_a_library(family: str, implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    code = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    name = "".join(part.title() for part in family.split("_"))
    sizes = {"hidden_size": WIDTH, "intermediate_size": HIDDEN, "moe_intermediate_size": HIDDEN}
    config = getattr(code, f"{name}Config")(**sizes, num_local_experts=EXPERTS, num_experts_per_tok=CHOSEN)
    config.num_experts = EXPERTS
    config._experts_implementation = implementation
    block = getattr(code, f"{name}SparseMoeBlock")(config).eval()
    torch.manual_seed(0)
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    pruned = fxprune.remove(block, torch.randn(2, 5, WIDTH), {"gate": GONE})
    assert len(pruned.get_parameter("experts.down_proj")) == EXPERTS - len(GONE)
    x, linear = torch.randn(3, 7, WIDTH), F.linear
    answer = pruned(x)

    def masked(given: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        out = linear(given, weight, bias)
        return out.index_fill(-1, torch.tensor(GONE), -torch.inf) if weight is block.gate.weight else out

    monkeypatch.setattr(F, "linear", masked)
    torch.testing.assert_close(answer, block(x), rtol=1e-4, atol=1e-4)
