"""Tampering with a result after the rewrite: what no output in eval mode and float64 tells, and a proof must see."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxprune
from fxprune.capture.samples import Sample
from fxprune.rewriting.provable import prove_plan
from fxprune.rewriting.rewriter import rewrite_certified

__all__ = ["TAMPERINGS", "Tampering", "Victim"]


class Victim(nn.Module):
    """A network with one of each thing that may be tampered with."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.mid = nn.Conv2d(8, 12, 3, padding=1)
        self.last = nn.Conv2d(12, 12, 1)
        self.again = nn.Conv2d(12, 12, 1)
        self.again.weight = self.last.weight
        self.drop = nn.Dropout(0.25)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone().mul_(2)
        y = F.relu(self.norm(self.stem(y)))
        y = torch.relu(self.mid(y + y.mean((2, 3), keepdim=True).detach()))
        y = torch.relu(self.again(torch.relu(self.last(y))))
        if self.training:
            y = y * 0.5
        y = y * torch.full((1,), 1.5, dtype=y.dtype)
        return self.head(self.drop(y.mean((2, 3))))


@dataclass(frozen=True)
class Tampering:
    """One change of a pruned network; ``change`` gets it and the original."""

    name: str
    change: Callable[[Any, Any], None]

    def __str__(self) -> str:
        return self.name

    def is_seen(self, level: bool | str = True) -> bool:
        """Whether the proof refuses what the change makes of a right result."""
        model, sample = Victim().eval(), torch.randn(2, 3, 8, 8)
        graph, given = fxprune.analyze(model, sample), Sample.from_input(sample)
        plan = fxprune.plan(model, sample, 0.4)
        masks = plan.masks(graph)
        pruned, certificates = rewrite_certified(graph, model, masks)
        self.change(pruned, model)
        try:
            prove_plan(graph, model, pruned, plan, masks, given, certificates, level)
        except fxprune.errors.ProofError:
            return True
        return False


def _rewritten(module: Any, change: Callable[[fx.Graph], None], modes: tuple[str, ...] = ("eval", "training")) -> None:
    """Change the graphs of some modes, and make the code of the present one anew."""
    for mode in modes:
        change(module._graphs[mode])
    module.recompile()


def _without(target: str, instead: Callable[[fx.Graph, fx.Node], fx.Node] | None = None) -> Callable[[fx.Graph], None]:
    """Let what comes before the ops of one name, or what ``instead`` writes, take their place."""

    def change(graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            if target in (node.target, getattr(node.target, "__name__", "")):
                with graph.inserting_before(node):
                    node.replace_all_uses_with(instead(graph, node) if instead else node.args[0])
                graph.erase_node(node)

    return change


def _at_the_end(op: Callable[[fx.Graph, Any], fx.Node]) -> Callable[[fx.Graph], None]:
    def change(graph: fx.Graph) -> None:
        output = next(node for node in graph.nodes if node.op == "output")
        with graph.inserting_before(output):
            output.args = (op(graph, output.args[0]),)

    return change


def _training_graph_of_eval(pruned: Any, model: Any) -> None:
    pruned._graphs["training"] = pruned._graphs["eval"]


def _untied(pruned: Any, model: Any) -> None:
    pruned.again.weight = nn.Parameter(pruned.again.weight.detach().clone())


def _shared(pruned: Any, model: Any) -> None:
    pruned.head.bias = model.head.bias


def _frozen(pruned: Any, model: Any) -> None:
    pruned.mid.weight.requires_grad_(False)


def _reordered(pruned: Any, model: Any) -> None:
    pruned.head._parameters["weight"] = pruned.head._parameters.pop("weight")


def _patched(pruned: Any, model: Any) -> None:
    forward = type(pruned).forward
    type(pruned).forward = lambda self, *args, **kwargs: forward(self, *args, **kwargs) * (2 - (args[0].shape[0] < 99))


TAMPERINGS = (
    Tampering("the training graph is that of eval mode", _training_graph_of_eval),
    Tampering(
        "the training graph multiplies twice",
        lambda p, m: _rewritten(p, _at_the_end(lambda g, n: g.call_function(torch.mul, (n, 2))), ("training",)),
    ),
    Tampering("a dropped detach", lambda p, m: _rewritten(p, _without("detach"))),
    Tampering("a dropped clone of the input", lambda p, m: _rewritten(p, _without("clone"))),
    Tampering("a broken tie", _untied),
    Tampering("a flipped requires_grad", _frozen),
    Tampering("another momentum", lambda p, m: setattr(p.norm, "momentum", 0.2)),
    Tampering("another dropout probability", lambda p, m: setattr(p.drop, "p", 0.5)),
    Tampering("a parameter shared with the original", _shared),
    Tampering(
        "a dtype baked in",
        lambda p, m: _rewritten(p, _at_the_end(lambda g, n: g.call_method("to", (n, torch.float32)))),
    ),
    Tampering(
        "rows beyond 12 dropped",
        lambda p, m: _rewritten(p, _at_the_end(lambda g, n: g.call_function(operator.getitem, (n, slice(12))))),
    ),
    Tampering("parameters in another order", _reordered),
    Tampering("an extra buffer", lambda p, m: p.register_buffer("extra", torch.zeros(3))),
    Tampering("a forward of the class that the graph does not say", _patched),
)
