"""Random parameters with which a network magnifies rounding prove nothing, and are drawn again, smaller."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import fxprune
from fxprune.capture.samples import Sample
from fxprune.proof.comparing import leaves_of
from fxprune.proof.probes import Probe
from fxprune.proof.rounding import is_steady

DOUBLE = torch.float64


class Chaos(nn.Module):
    """Layers whose outputs are multiplied: relative changes double with each."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(6 * layer(x))
        return self.last(x)


def steady(model: nn.Module) -> bool:
    torch.manual_seed(0)
    model = copy.deepcopy(model).to(DOUBLE)
    x = torch.randn(4, 8, dtype=DOUBLE)
    answer = leaves_of(model(x))
    return is_steady(model, Probe("", Sample((x,), {})), answer, DOUBLE, 1e-9, seed=0)


def test_chaotic_layers_are_told_from_ordinary_ones() -> None:
    torch.manual_seed(0)
    assert steady(Chaos(2))
    assert not steady(Chaos(24))
    assert steady(nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(24))))


def test_a_chaotic_network_is_proven_on_calmer_parameters() -> None:
    torch.manual_seed(0)
    pruned = fxprune.compile(Chaos(16), torch.randn(4, 8), 0.3)
    proof = fxprune.report(pruned).proof
    assert proof is not None
    assert proof.randomised or any("magnify rounding" in note for note in proof.notes)
