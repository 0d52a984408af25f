"""What differs between two graphs beyond sizes is refused, whether or not a value shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

import fxprune
from fxprune.errors import ProofError
from fxprune.proof.nodes import check_structure
from tests.proof.nodes.pairing import Rewritten, mixed, rewritten


def refused(given: Rewritten, words: str) -> None:
    with pytest.raises(ProofError, match=words):
        check_structure(given.pairs)


def test_an_untouched_rewrite_passes() -> None:
    given = mixed()
    assert [pair.label for pair in given.pairs] == ["eval", "training"]
    check_structure(given.pairs)


def as_relu6(given: Rewritten) -> None:
    given.node("relu").target = F.relu6


def with_another_slope(given: Rewritten) -> None:
    node = given.node("leaky_relu")
    node.args, node.kwargs = node.args[:1], {"negative_slope": 0.1000001, **dict(node.kwargs, negative_slope=0.1000001)}


def with_another_factor(given: Rewritten) -> None:
    node = given.node("mul")
    node.args = tuple(a if isinstance(a, fx.Node) else a * 2 for a in node.args)


def without_detach(given: Rewritten) -> None:
    node = given.node("detach")
    node.replace_all_uses_with(node.all_input_nodes[0])
    node.graph.erase_node(node)


def writing_in_another_order(given: Rewritten) -> None:
    given.node("add_").append(given.node("mul_"))


def reading_another_node(given: Rewritten) -> None:
    given.node("second").args = (given.node("norm"),)


def with_a_write_of_its_own(given: Rewritten) -> None:
    node = given.node("second")
    with node.graph.inserting_before(node):
        node.graph.call_function(torch.Tensor.mul_, (node.args[0], 1))


def with_sizes_of_another_kind(given: Rewritten) -> None:
    node = given.node("mean")
    node.args = (node.args[0], ("2", 3))


TAMPERINGS = {
    as_relu6: "node relu .*it became",
    with_another_slope: "leaky_relu.*0.1 became 0.1000001",
    with_another_factor: "node mul.*0.5 became",
    without_detach: "detach.*missing",
    writing_in_another_order: "node mul_.*adds add_",
    reading_another_node: "reads norm instead of relu",
    with_a_write_of_its_own: "node second.*adds",
    with_sizes_of_another_kind: "mean",
}


@pytest.mark.parametrize("tamper", TAMPERINGS, ids=lambda f: f.__name__)
def test_tampering_is_refused(tamper: Callable[[Rewritten], Any]) -> None:
    given = mixed()
    tamper(given)
    refused(given, TAMPERINGS[tamper])


def test_the_training_graph_is_compared_too() -> None:
    given = mixed()
    node = given.node("dropout", training=True)
    node.kwargs = {**node.kwargs, "p": 0.31}
    refused(given, "training graph, node dropout.*0.3 became 0.31")


def test_an_error_names_the_line_of_the_source() -> None:
    given = mixed()
    as_relu6(given)
    refused(given, r"nodes/pairing\.py:\d+")


def test_a_graph_that_does_not_run_is_no_evidence() -> None:
    given = mixed()
    copied = fx.Graph()
    copied.output(copied.graph_copy(given.pairs[0].narrow, {}))
    with pytest.raises(ProofError, match="runs another"):
        check_structure(given.claiming(narrow=copied))


def test_a_false_claim_can_only_fail() -> None:
    given = mixed()
    images = dict(given.pairs[0].images)
    names = {node.name: node for node in images}
    for claim in (None, 3, images[names["first"]]):
        with pytest.raises(ProofError):
            check_structure(given.claiming(images={**images, names["relu"]: claim}))


def test_a_check_of_sizes_may_not_be_left_out() -> None:
    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x) if x.shape[-1] % 2 == 0 else self.first(x[..., 1:]))

    given = rewritten(Halved(), torch.randn(2, 3, 8, 8))
    check_structure(given.pairs)
    graph = given.pairs[0].narrow
    check = next(node for node in graph.nodes if node.target is torch._assert)
    graph.erase_node(check)
    refused(given, "_assert.*missing")


def test_picks_and_sizes_are_the_rewrites_own() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 12, 1), nn.Conv2d(10, 3, 1)
            self.inner = nn.Conv2d(12, 12, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.inner(self.first(x))
            a, b = x.chunk(2, 1)
            x = torch.cat((a + b, x[:, ::3]), 1)
            return self.last(x.reshape(x.shape[0], x.shape[1] // 2, 2, -1).flatten(1, 2).unflatten(2, (2, -1)))

    given = rewritten(Split(), torch.randn(2, 3, 4, 4), 0.3, criterion="random")
    check_structure(given.pairs)


def test_a_selection_is_a_pick_or_nothing() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
            self.last = nn.Conv2d(8, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.last(x + self.inner(x))

    given = rewritten(Residual(), torch.randn(2, 3, 4, 4), 0.3, couplings="drop")
    picks = [node for node in given.pairs[0].narrow.nodes if node.target is torch.index_select]
    assert picks
    check_structure(given.pairs)
    picks[0].target = torch.add
    picks[0].args = (picks[0].args[0], 1)
    refused(given, "select_channels|adds")


def test_a_default_compilation_compares_structures(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mixed().model
    original = fxprune.rewriting.rewriter.Rewriter._create

    def faulty(self: Any, node: fx.Node, args: Any, kwargs: Any) -> fx.Node:
        written = original(self, node, args, kwargs)
        if node.name == "relu":
            written.target = F.relu6
        return written

    monkeypatch.setattr(fxprune.rewriting.rewriter.Rewriter, "_create", faulty)
    with pytest.raises(ProofError, match="node relu"):
        fxprune.compile(model, torch.rand(2, 3, 8, 8), 0.3)
