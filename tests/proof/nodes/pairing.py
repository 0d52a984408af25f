"""A small network beside its rewrite, ready to be tampered with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

import fxprune
from fxprune.proof.nodes import Pair
from fxprune.rewriting import rewrite_certified
from fxprune.rewriting.provable import pairs_of


class Mixed(nn.Module):
    """A convolutional network with literals, a write in place, a gradient that stops, and a graph for each mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.second = nn.Conv2d(12, 12, 3, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.first(x)))
        y = F.leaky_relu(self.second(x), 0.1)
        x = x + 0.5 * y.detach() + torch.sigmoid(y)
        x.mul_(2.0)
        x.add_(1.0)
        x = F.dropout(x, 0.3, self.training)
        return self.head(x.mean((2, 3)))


@dataclass
class Rewritten:
    """A network, its rewrite, and the pairs of graphs, the training graph last."""

    model: nn.Module
    sample: Any
    graph: Any
    plan: Any
    pruned: Any
    pairs: list[Pair]

    def node(self, name: str, training: bool = False) -> fx.Node:
        """A node of the rewritten graph by name."""
        return next(n for n in self.pairs[-1 if training else 0].narrow.nodes if n.name == name)

    def claiming(self, **changes: Any) -> list[Pair]:
        """The pairs with another claim in the first."""
        return [replace(self.pairs[0], **changes), *self.pairs[1:]]


def rewritten(model: nn.Module, sample: Any, ratio: float = 0.5, **options: Any) -> Rewritten:
    """Everything but the proof."""
    model = model.eval()
    graph = fxprune.analyze(model, sample, couplings=options.get("couplings", "keep"))
    plan = fxprune.plan(model, sample, ratio, **options)
    masks = plan.masks(graph)
    pruned, certificates = rewrite_certified(graph, model, masks)
    return Rewritten(model, sample, graph, plan, pruned, pairs_of(graph, masks, pruned, certificates))


def mixed() -> Rewritten:
    """:class:`Mixed` at half its cost."""
    return rewritten(Mixed(), torch.randn(2, 3, 8, 8))
