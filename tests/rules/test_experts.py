"""Mixtures of experts whose rows are sorted by expert and multiplied in groups: hidden widths are cut, and counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune

EXPERTS, WIDTH, HIDDEN, CHOSEN = 4, 16, 32, 2


class Experts(nn.Module):
    """A router, and gated experts as packed weights (experts, 2 * hidden, width) and (experts, width, hidden)."""

    def __init__(self, hidden: int, by_function: bool) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.up = nn.Parameter(torch.randn(EXPERTS, 2 * hidden, WIDTH) / 4)
        self.down = nn.Parameter(torch.randn(EXPERTS, WIDTH, hidden) / 4)
        self.product = F.grouped_mm if by_function else torch._grouped_mm

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(CHOSEN, -1)
        numbers, order = chosen.reshape(-1).sort(stable=True)
        counts = torch.histc(numbers.float(), bins=EXPERTS, min=0, max=EXPERTS - 1)
        ends = counts.cumsum(0, dtype=torch.int32)
        gate, value = self.product(x[order // CHOSEN], self.up.mT, offs=ends).chunk(2, -1)
        made = self.product(F.silu(gate) * value, self.down.mT, offs=ends)
        made = made * weights.reshape(-1)[order][:, None]
        return made[order.argsort()].view(-1, CHOSEN, WIDTH).sum(1)


class Network(nn.Module):
    """An embedding of tokens, experts on a residual stream, and a head."""

    def __init__(self, hidden: int, by_function: bool) -> None:
        super().__init__()
        self.first, self.experts, self.last = nn.Linear(6, WIDTH), Experts(hidden, by_function), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h + self.experts(h))


def by_expert(net: Network, x: Tensor) -> Tensor:
    """The same with a loop over experts, for experts of any hidden width."""
    h = net.get_submodule("first")(x)
    router, up, down = (net.get_parameter(f"experts.{name}") for name in ("router.weight", "up", "down"))
    weights, chosen = F.linear(h, router, net.get_parameter("experts.router.bias")).softmax(-1).topk(CHOSEN, -1)
    total = torch.zeros_like(h)
    for number in range(EXPERTS):
        gate, value = F.linear(h, up[number]).chunk(2, -1)
        share = (weights * (chosen == number)).sum(-1, keepdim=True)
        total = total + share * F.linear(F.silu(gate) * value, down[number])
    return net.get_submodule("last")(h + total)


@pytest.mark.parametrize("by_function", [True, False])
def test_hidden_widths_of_experts_are_cut_in_steps_that_the_kernel_takes(by_function: bool) -> None:
    torch.manual_seed(0)
    model = Network(HIDDEN, by_function).eval()
    pruned = fxprune.compile(model, torch.randn(10, 6), 0.4)
    down = pruned.get_parameter("experts.down")
    assert down.shape[2] < HIDDEN
    assert down.shape[2] % 8 == down.shape[1] % 8 == 0
    for rows in (10, 3):
        x = torch.randn(rows, 6)
        torch.testing.assert_close(pruned(x), by_expert(pruned, x), rtol=1e-4, atol=1e-5)
    # For ten rows: the layers, and two experts of two products for each row.
    expected = 10 * (6 * WIDTH + WIDTH * EXPERTS + WIDTH * 3 + CHOSEN * 3 * WIDTH * HIDDEN)
    assert fxprune.report(pruned).macs_before == expected


@pytest.mark.parametrize("by_function", [False, True])
def test_experts_are_exported(by_function: bool, tmp_path: Path) -> None:
    net, x = Network(HIDDEN, by_function).eval(), torch.randn(10, 6)
    pruned = fxprune.compile(net, x, 0.3)
    fxprune.export(pruned, tmp_path / "net.pt2")
    program, other = torch.export.load(tmp_path / "net.pt2"), torch.randn(7, 6)
    torch.testing.assert_close(program.module()(other), pruned(other))
