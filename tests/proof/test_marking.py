"""Values that no parameter makes: the plan's word is asked for them, and believed only where it can do no harm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.errors import ProofError
from fxprune.proof import Proof, prove
from tests.proof import twins
from tests.proof.twins import Kept

WIDE = 5  # zeros padded to the right of the three channels


class Padded(nn.Module):
    """Zero channels that meet a softmax: removed ones can be told by nothing but the plan."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(self.stem(x), (0, 0, 0, 0, 0, 5))
        return self.head(x * torch.sigmoid(x.softmax(1)))


def cut_pad(pruned: fx.GraphModule, amount: int) -> None:
    for node in pruned.graph.nodes:
        if node.target is nn.functional.pad:
            node.args = (node.args[0], (0, 0, 0, 0, 0, amount))
    pruned.recompile()


def padded(stem: Tensor, wide: Tensor, pad: int, node: Tensor | None) -> Proof:
    torch.manual_seed(0)
    model = Padded()
    captured = fx.symbolic_trace(model)
    keep: Kept = {
        "stem.weight": (stem, None, None, None),
        "stem.bias": (stem,),
        "head.weight": (None, wide, None, None),
    }
    pruned = twins.cut(captured, keep, lambda p: cut_pad(p, pad))
    node_keep = {} if node is None else {"pad": (None, node, None, None)}
    sample = ((torch.randn(2, 2, 4, 4),), {})
    return prove(model, captured, pruned, keep, sample, crosses_norm=True, node_keep=node_keep)


STEM, KEPT = twins.index(0, 2), twins.index(0, 2, 3, 4, 6)


def test_without_the_plan_the_zeros_cannot_be_told_apart() -> None:
    with pytest.raises(ProofError, match="outputs"):
        padded(STEM, KEPT, 3, None)


def test_the_plan_says_which_zeros_go() -> None:
    proof = padded(STEM, KEPT, 3, KEPT)
    assert proof.method == "nan-carrying"
    assert any("as the plan says" in note for note in proof.notes)


@pytest.mark.parametrize(
    ("stem", "wide", "pad", "node"),
    [
        # the plan's word on the zeros is not what the weights lost
        (STEM, KEPT, 3, twins.index(0, 2, 3, 4, 7)),
        (STEM, KEPT, 3, twins.index(0, 2, 3, 4)),
        # a channel with a content of its own is dropped on the plan's word alone
        (twins.index(0, 1, 2), twins.index(0, 2, 3, 4, 6), 3, twins.index(0, 2, 3, 4, 6)),
        # the network pads by another amount
        (STEM, KEPT, 4, KEPT),
    ],
)
def test_a_wrong_statement_is_refused(stem: Tensor, wide: Tensor, pad: int, node: Tensor) -> None:
    with pytest.raises(ProofError):
        padded(stem, wide, pad, node)


class Constants(nn.Module):
    """A repeated channel plus a table made in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.stem(x).expand(-1, 6) + torch.linspace(-1, 1, 6)))


def test_constants_of_the_graph() -> None:
    model = Constants()
    tracer = fx.Tracer()
    graph = tracer.trace(model)
    table = next(n for n in graph.nodes if n.op == "get_attr" and "constant" in str(n.target))
    captured = fx.GraphModule(model, graph)
    kept = twins.index(0, 3, 4)
    keep: Kept = {"head.weight": (None, kept)}

    def repair(pruned: fx.GraphModule) -> None:
        name = str(table.target)
        setattr(pruned, name, getattr(pruned, name)[kept])
        for node in pruned.graph.nodes:
            if node.target == "expand":
                node.args = (node.args[0], -1, 3)
        pruned.recompile()

    pruned = twins.cut(captured, keep, repair)
    sample = ((torch.randn(2, 2),), {})
    assert prove(model, captured, pruned, {**keep, str(table.target): (kept,)}, sample, crosses_norm=False)


class ComputedTable(nn.Module):
    """A table that the forward computes from sizes: no parameter and no copy tells which of its columns go."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Linear(8, 6)
        self.stem = nn.Linear(4, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(x.shape[1], device=x.device)[:, None] * torch.arange(1, 9, device=x.device)
        return self.head((self.stem(x) + self.table(torch.sin(steps.to(x.dtype)))).softmax(-1))


def test_a_table_that_the_forward_computes_loses_what_the_plan_says() -> None:
    sample = torch.randn(2, 5, 4)
    pruned = fxprune.compile(ComputedTable(), sample, 0.5, budget="channels", scope="uniform", verify="full")
    assert pruned.get_parameter("table.weight").shape[1] < 8
    proof = fxprune.report(pruned).proof
    assert proof is not None
    assert any("as the plan says" in note for note in proof.notes)
