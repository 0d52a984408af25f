"""Layers called one by one in a forward that values decide: pruned inside, on the branches that were seen."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune import errors
from fxprune.capture.decisions import REFUSAL, are_complete
from fxprune.proof import UnjudgedError, prove_nodes
from tests.nets.oracles import masked
from tests.proof.nodes.pairing import rewritten


def assert_takes(model: nn.Module, pruned: nn.Module, *args: Tensor) -> None:
    """The pruned network gives what the masked original gives, and the same gradient of the first layer."""
    plan = fxprune.report(pruned).plan
    assert plan is not None
    wanted = masked(model, plan.keep)
    expected, found = wanted(*args), pruned(*args)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    wanted.zero_grad(), pruned.zero_grad()
    expected.square().sum().backward(), found.square().sum().backward()
    name, parameter = next(iter(pruned.named_parameters()))
    gradient = wanted.get_parameter(name).grad
    assert gradient is not None
    kept = plan.keep[name][0]
    torch.testing.assert_close(parameter.grad, gradient if kept is None else gradient[kept], atol=1e-4, rtol=1e-4)


def assert_refused(pruned: nn.Module, *args: Tensor) -> None:
    with pytest.raises(AssertionError, match="made for inputs of other values"):
        pruned(*args)


class Ways(nn.Module):
    """One of several layers, as ``choose`` says, beside a block that could be pruned by itself."""

    def __init__(self, choose: Callable[..., int], inner: int = 8) -> None:
        super().__init__()
        self.first, self.ways = nn.Linear(6, 16), nn.ModuleList(nn.Linear(16, 24) for _ in range(4))
        self.block = nn.Sequential(nn.Linear(24, inner), nn.ReLU(), nn.Linear(inner, 24))
        self.last, self.choose = nn.Linear(24, 4), choose

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        h = self.first(x).relu()
        h = self.ways[self.choose(h, x, *more)](h).relu()
        return self.last(self.block(h).relu())


def by_sign(h: Tensor, x: Tensor) -> int:
    return 0 if x.sum() > 0 else 1


def by_two_signs(h: Tensor, x: Tensor) -> int:
    if x.sum() > 0:
        return 0 if x[:, 0].sum() > 0 else 1
    return 2


def by_number(h: Tensor, x: Tensor, number: Tensor) -> int:
    return int(number.item())


def by_best(h: Tensor, x: Tensor) -> int:
    return int(x.mean(0)[:4].argmax())


def of_sum(total: float, rows: int = 3) -> Tensor:
    x = torch.randn(rows, 6)
    return x - x.mean() + total / x.numel()


def names_cut(model: nn.Module, pruned: nn.Module) -> set[str]:
    return {name for name, p in pruned.named_parameters() if p.shape != model.get_parameter(name).shape}


def test_ways_that_leave_out_no_answer_are_preferred_to_an_opaque_forward() -> None:
    model = Ways(by_sign).eval()
    pruned = fxprune.compile(model, of_sum(2.0), 0.5)
    row = next(row for row in fxprune.report(pruned).opaque if row.name == "decisions on values")
    assert "leave out no answer" in row.reason
    assert {"first.weight", "ways.0.weight", "ways.1.weight", "block.0.weight", "last.weight"} <= names_cut(
        model, pruned
    )
    for total, rows in product((3.0, -3.0, 40.0), (1, 3, 5)):
        assert_takes(model, pruned, of_sum(total, rows))


def test_a_way_that_was_not_seen_does_not_cost_other_values() -> None:
    """The answers of one question were not all seen, and a block can be pruned by itself: nothing is refused."""
    model = Ways(by_best, inner=96).eval()
    x = torch.zeros(3, 6)
    x[:, 0] = 1
    pruned = fxprune.compile(model, x, 0.3)
    assert "block.0.weight" in names_cut(model, pruned)
    for best in range(4):
        torch.testing.assert_close(pruned(x.roll(best, 1)).shape, (3, 4))
        assert_takes(model, pruned, x.roll(best, 1) + torch.rand(3, 6) / 4)


def test_other_samples_choose_the_ways() -> None:
    model = Ways(by_best, inner=96).eval()
    x = torch.zeros(3, 6)
    x[:, 0] = 1
    pruned = fxprune.compile(model, x, 0.5, other_samples=[x.roll(best, 1) for best in (1, 2)])
    assert {"ways.0.weight", "ways.1.weight", "ways.2.weight"} <= names_cut(model, pruned)
    for best in range(3):
        assert_takes(model, pruned, x.roll(best, 1) + torch.rand(3, 6) / 4)
    assert_refused(pruned, x.roll(3, 1))


def test_a_layer_that_a_number_picks_is_pruned_for_the_numbers_near_the_samples() -> None:
    model = Ways(by_number).eval()
    model.block = nn.Linear(24, 24)  # no part could be pruned by itself
    pruned = fxprune.compile(model, (torch.randn(3, 6), torch.tensor(1)), 0.5)
    for number in range(4):
        assert f"ways.{number}.weight" in names_cut(model, pruned)
        assert_takes(model, pruned, torch.randn(5, 6), torch.tensor(number))
    assert_refused(pruned, torch.randn(3, 6), torch.tensor(-2))


class Rare(nn.Module):
    """Adds up entries above nine, of which its sample has none."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 32), nn.Linear(32, 32)])

    def forward(self, x: Tensor) -> Tensor:
        x = x + x[x > 9].sum()
        for layer in self.layers:
            x = layer(x).relu()
        return x


def test_rare_values_are_accepted_where_parts_can_be_pruned() -> None:
    model = nn.Sequential(Rare(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    sample = torch.randn(3, 6).clamp(-3, 3)
    pruned = fxprune.compile(model, sample, 0.2)
    assert fxprune.report(pruned).macs_after < fxprune.report(pruned).macs_before
    for scale in (1, 10, 100):
        assert_takes(model, pruned, torch.randn(5, 6) * scale)


def test_ways_are_saved_and_loaded(tmp_path: Path) -> None:
    pruned = fxprune.compile(Ways(by_sign).eval(), of_sum(2.0), 0.5)
    fxprune.save(pruned, tmp_path / "net")
    loaded = fxprune.load(tmp_path / "net")
    for total in (3.0, -3.0):
        x = of_sum(total)
        assert torch.equal(loaded(x), pruned(x))


def _graph(*answers: bool) -> fx.Graph:
    graph = fx.Graph()
    x = graph.placeholder("x")
    for number, answer in enumerate(answers):
        value = graph.call_function(torch.gt, (x, number))
        condition = graph.call_function(operator.ne if answer else operator.eq, (value, 0))
        graph.call_function(torch._assert, (condition, f"{REFUSAL}inputs of other values"))
    graph.output(x)
    return graph


@pytest.mark.parametrize(
    ("ways", "complete"),
    [
        ([""], True),
        (["y"], False),
        (["y", "n"], True),
        (["y", "n", "n"], True),
        (["y", "ny"], False),
        (["y", "ny", "nn"], True),
        (["yy", "yn", "n"], True),
        (["yy", "ny", "nn"], False),
        (["y", "n", "ny"], False),
        (["yy", "yn", "ny", "nn"], True),
        (["yy", "nn"], False),
    ],
)
def test_ways_are_complete_where_each_question_has_both_answers(ways: list[str], complete: bool) -> None:
    assert are_complete([_graph(*(answer == "y" for answer in way)) for way in ways]) is complete


def test_two_questions_one_inside_the_other_are_refused_or_right() -> None:
    model = Ways(by_two_signs).eval()
    pruned = fxprune.compile(model, of_sum(2.0), 0.4)
    for total in (3.0, -3.0, 40.0, 0.5):
        for _ in range(4):
            x = of_sum(total)
            try:
                pruned(x)
            except AssertionError:
                continue
            assert_takes(model, pruned, x)


class ByActivations(nn.Module):
    """Another branch by what a layer that is cut has computed."""

    def __init__(self, seed: int, choose: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second, self.last = nn.Linear(8, 16), nn.Linear(16, 12), nn.Linear(12, 4)
        self.choose = choose

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(self.second(self.choose(h)).relu())

    def narrowed(self, pruned: nn.Module) -> nn.Module:
        """The same forward over the pruned layers."""
        twin = copy.copy(self)
        twin._modules = {name: pruned.get_submodule(name) for name in self._modules}
        return twin


def doubled_if_large(h: Tensor) -> Tensor:
    h = h.relu()
    return h * 2 if h.mean() > 0.3 else h


def squashed_if_negative(h: Tensor) -> Tensor:
    return h * 2 if h.sum() > 0 else h.tanh()


def squashed_by_numpy(h: Tensor) -> Tensor:
    h = h.relu()
    return torch.from_numpy(h.detach().numpy() * 2) if h.mean() > 0.3 else h


# For some seeds removal leads the sample itself to the other branch.
@pytest.mark.parametrize("seed", [0, 1, 3, 5])
@pytest.mark.parametrize("choose", [doubled_if_large, squashed_if_negative])
def test_removal_may_lead_the_sample_to_another_branch(choose: Callable[[Tensor], Tensor], seed: int) -> None:
    model = ByActivations(seed, choose).eval()
    torch.manual_seed(seed + 100)
    x = torch.randn(4, 8)
    pruned = fxprune.compile(model, x, 0.5, round_to=1)
    expected = model.narrowed(pruned)
    for values in (x, 3 * x, 0.1 * x, -x, torch.randn(7, 8)):
        torch.testing.assert_close(pruned(values), expected(values))


def test_a_result_that_would_refuse_the_sample_is_an_error() -> None:
    told = set()
    for seed in range(6):
        torch.manual_seed(seed + 100)
        x = torch.randn(4, 8)
        try:
            fxprune.compile(ByActivations(seed, squashed_by_numpy).eval(), x, 0.5, round_to=1)(x)
        except errors.FxpruneError as error:
            told.add("refuses the sample" in str(error))
    assert True in told


def test_a_check_of_another_answer_is_a_fault() -> None:
    given = rewritten(ByActivations(0, squashed_if_negative), torch.randn(4, 8), round_to=1)
    node = next(node for node in given.pairs[0].narrow.nodes if node.target is torch._assert)
    with node.graph.inserting_before(node):
        other = node.graph.call_function(operator.not_, (node.args[0],))
    node.args = (other, *node.args[1:])
    with pytest.raises((errors.ProofError, UnjudgedError)):
        prove_nodes(given.model, given.pruned, given.pairs, given.plan.keep)
