"""Networks in which removed entries leave no trace in the outputs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn

from fxprune.errors import ProofError
from tests.proof import twins
from tests.proof.test_proving import run
from tests.proof.twins import Kept, Twin


class Scaled(nn.Module):
    """A branch behind a layer scale."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(8, 6)
        self.scale = nn.Parameter(torch.full((1, 6), scale))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.down(torch.tanh(self.up(x)))


def scaled(scale: float, columns: Tensor | None = None) -> Twin:
    kept = twins.index(0, 2, 3, 7)
    columns = kept if columns is None else columns
    keep: Kept = {"up.weight": (kept, None), "up.bias": (kept,), "down.weight": (None, columns)}
    return twins.twin(Scaled(scale), keep, torch.randn(2, 6))


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e-12])
def test_a_hidden_branch_is_shown_by_random_parameters(scale: float) -> None:
    proof = run(scaled(scale))
    assert proof.randomised
    assert not proof.vacuous


@pytest.mark.parametrize("crosses_norm", [False, True])
@pytest.mark.parametrize("scale", [0.0, 1e-12])
def test_a_fault_in_a_hidden_branch_is_refused(scale: float, crosses_norm: bool) -> None:
    case = scaled(scale, columns=twins.index(0, 2, 3, 6))
    with pytest.raises(ProofError):
        run(case, crosses_norm=crosses_norm)


def test_every_proof_looks_at_random_parameters_too() -> None:
    assert run(scaled(1.0)).randomised


class Fading(nn.Module):
    """A deep branch beside a visible one: together they are far from vacuous, alone the deep one is below rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(8, 6)
        self.deep_up = nn.Linear(6, 8)
        self.deep_down = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x))) + self.deep_down(torch.tanh(self.deep_up(x)))


@pytest.mark.parametrize(
    ("columns", "message"),
    [((0, 2, 3, 6), "lost different positions"), ((2, 0, 3, 7), "with random parameters|in training mode")],
)
def test_a_fault_below_rounding_is_refused_beside_a_visible_change(columns: tuple[int, ...], message: str) -> None:
    kept = twins.index(0, 2, 3, 7)
    keep: Kept = {}
    for name, read in (("", kept), ("deep_", twins.index(*columns))):
        keep |= {f"{name}up.weight": (kept, None), f"{name}up.bias": (kept,), f"{name}down.weight": (None, read)}
    case = twins.twin(Fading(), keep, torch.randn(2, 6))
    with torch.no_grad():
        for net in (case.original, case.pruned):
            net.get_parameter("deep_down.weight").mul_(1e-14)
    with pytest.raises(ProofError, match=message):
        run(case)


class Silent(Scaled):
    """Rectified units."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.down(torch.relu(self.up(x)))


def test_a_fault_behind_a_silent_unit_is_refused() -> None:
    """The bias keeps the wrongly joined unit at zero for every input."""
    kept = twins.index(0, 2, 3, 7)
    keep: Kept = {"up.weight": (kept, None), "up.bias": (kept,), "down.weight": (None, twins.index(0, 2, 3, 6))}
    case = twins.twin(Silent(1.0), keep, torch.randn(2, 6))
    with torch.no_grad():
        case.original.up.bias[[6, 7]] = -100.0
        case.pruned.get_parameter("up.bias")[3] = -100.0
    with pytest.raises(ProofError, match="lost different positions|with random parameters"):
        run(case)


class Unused(nn.Module):
    """A branch that never reaches the output."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * self.down(self.up(x))


def test_a_change_that_never_reaches_the_output_is_called_vacuous() -> None:
    kept = twins.index(0, 2)
    keep: Kept = {"up.weight": (kept, None), "up.bias": (kept,), "down.weight": (None, kept)}
    proof = run(twins.twin(Unused(), keep, torch.randn(2, 6)))
    assert proof.vacuous
    assert proof.randomised
    assert any("vacuous" in note for note in proof.notes)


def test_all_zero_samples_are_followed_by_random_ones() -> None:
    case = scaled(1.0)
    case.sample = ((torch.zeros(2, 6),), {})
    assert not run(case).vacuous


def test_a_plan_that_removes_nothing_is_no_vacuity() -> None:
    proof = run(twins.twin(Scaled(1.0), {}, torch.randn(2, 6)))
    assert not proof.vacuous
    assert not proof.randomised
    assert "the plan removes nothing" in proof.notes


class Frozen(Scaled):
    """No gradient passes the branch."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + super().forward(x).detach()


def learning(network: fx.GraphModule) -> None:
    """Let the gradient pass."""
    stop = next(node for node in network.graph.nodes if node.target == "detach")
    stop.replace_all_uses_with(stop.all_input_nodes[0])
    network.graph.erase_node(stop)
    network.recompile()


def test_a_plan_that_removes_nothing_is_compared_in_training_too() -> None:
    with pytest.raises(ProofError, match=r"in training mode: the gradient of .* differs"):
        run(twins.twin(Frozen(1.0), {}, torch.randn(2, 6), repair=learning))


class Normed(nn.Module):
    """A norm over the channels, before a branch that no gradient passes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(self.up(x))
        return self.down(normed.detach() * 2 + normed)


def test_where_zeros_cannot_stand_in_the_trace_has_the_gradients_of_the_original() -> None:
    kept = twins.index(0, 2, 3, 7)
    keep: Kept = {"up.weight": (kept, None), "up.bias": (kept,), "down.weight": (None, kept)}
    keep |= {"norm.weight": (kept,), "norm.bias": (kept,)}
    case = twins.twin(Normed(), keep, torch.randn(2, 6), crosses_norm=True)
    assert any(note.startswith("gradients not compared") for note in run(case, trained=case.captured).notes)
    loose = copy.deepcopy(case.captured)
    learning(loose)
    with pytest.raises(ProofError, match=r"in training mode: the gradient of .* differs"):
        run(case, trained=loose)
