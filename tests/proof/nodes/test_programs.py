"""Two programs over one set of tensors: whatever one does otherwise is seen, and nothing of either is left behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.capture.samples import Sample
from fxprune.proof.nodes.pairs import UnjudgedError
from fxprune.proof.nodes.programs import NumberedPrograms, Programs, asks_for_modes, hidden_modes, in_mode
from fxprune.proof.nodes.standins import StandIns


class Net(nn.Module):
    """Two layers alike, a norm, a mask of a dropout, and a counter."""

    steps: Tensor

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.norm = nn.Linear(width, width), nn.Linear(width, width), nn.BatchNorm1d(width)
        with torch.no_grad():
            self.two.weight.copy_(self.one.weight)
            self.two.bias.copy_(self.one.bias)
        self.register_buffer("steps", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        y = F.dropout(self.norm(self.one(x)), 0.3, self.training)
        return self.two(F.relu(y)) + y


def counted(net: Net) -> None:
    with torch.no_grad():
        net.steps += 1


def plain(net: Net, x: Tensor) -> Tensor:
    counted(net)
    y = F.dropout(net.norm(net.one(x)), 0.3, net.training)
    return net.two(F.relu(y)) + y


def with_another_layer(net: Net, x: Tensor) -> Tensor:
    """Equal values, but another parameter learns."""
    counted(net)
    y = F.dropout(net.norm(net.two(x)), 0.3, net.training)
    return net.one(F.relu(y)) + y


def without_a_gradient(net: Net, x: Tensor) -> Tensor:
    counted(net)
    y = F.dropout(net.norm(net.one(x)), 0.3, net.training)
    return net.two(F.relu(y)) + y.detach()


def without_counting(net: Net, x: Tensor) -> Tensor:
    y = F.dropout(net.norm(net.one(x)), 0.3, net.training)
    return net.two(F.relu(y)) + y


def with_another_draw(net: Net, x: Tensor) -> Tensor:
    result = plain(net, x)
    torch.rand(1)
    return result


def writing_to_the_input(net: Net, x: Tensor) -> Tensor:
    result = plain(net, x.clone())
    x.zero_()
    return result


def with_another_value(net: Net, x: Tensor) -> Tensor:
    return plain(net, x) * (1 + 1e-6)


OTHERS: dict[Callable[[Net, Tensor], Tensor], str] = {
    with_another_layer: "way back leads to",
    without_a_gradient: "way back|on the way back",
    without_counting: "steps",
    with_another_draw: "generator",
    writing_to_the_input: "after the call",
    with_another_value: "output differs|output comes about",
}


KINDS = (Programs, NumberedPrograms)


def compared(
    other: Callable[[Net, Tensor], Tensor], training: bool, width: int = 6, kind: type[Programs] = Programs
) -> tuple[str, Net]:
    net = Net(width)
    programs = kind(net)
    own: Any = getattr(programs, "owner", net)
    with in_mode(own, training):
        found = programs.part(own, lambda x: other(own, x), Sample((torch.randn(5, width),), {}))
    return found, net


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_the_same_program_in_other_words(training: bool, kind: type[Programs]) -> None:
    found, net = compared(plain, training, kind=kind)
    assert found == ""
    assert net.steps.item() == 0
    assert int(net.norm.num_batches_tracked or 0) == 0


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", OTHERS, ids=lambda other: other.__name__)
def test_other_computations_are_noticed(
    other: Callable[[Net, Tensor], Tensor], training: bool, kind: type[Programs]
) -> None:
    found, net = compared(other, training, kind=kind)
    # Numbers tell that something is done otherwise even where values are equal.
    words = [*OTHERS[other].split("|"), *(["comes about in another way"] if kind is NumberedPrograms else [])]
    assert any(word in found for word in words), found
    assert net.steps.item() == 0


def written(x: Tensor, row: int, order: int = 0) -> Tensor:
    y = x.clone()
    view = y[row]
    for call in (view.relu_, y.exp_)[:: -1 if order else 1]:
        call()
    return y + 1


@pytest.mark.parametrize(("row", "order"), [(1, 0), (0, 1)])
def test_numbers_tell_where_and_when_a_view_is_written(row: int, order: int) -> None:
    programs, sample = NumberedPrograms(nn.Identity()), Sample((torch.randn(3, 4),), {})
    assert programs.part(lambda x: written(x, 0), lambda x: written(x, 0), sample) == ""
    assert programs.part(lambda x: written(x, 0), lambda x: written(x, row, order), sample) != ""


def test_numbering_refuses_code_that_depends_on_values() -> None:
    programs, sample = NumberedPrograms(nn.Identity()), Sample((torch.randn(3, 4),), {})
    for program in (lambda x: x * float(x.sum()), lambda x: x[x > 0], lambda x: torch.zeros(3, 4).copy_(x)):
        with pytest.raises(UnjudgedError):
            programs.part(program, program, sample)


def test_layers_with_stand_ins_are_told_apart() -> None:
    found, _ = compared(with_another_layer, False, width=512)
    assert "differs" in found or "way back" in found
    assert compared(plain, False, width=512)[0] == ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_parameter_is_not_written(kind: type[Programs]) -> None:
    def writing(net: Net, x: Tensor) -> Tensor:
        with torch.no_grad():
            net.one.weight.mul_(2)
        return plain(net, x)

    before = Net().one.weight.clone()
    with pytest.raises(UnjudgedError, match="writes to parameters"):
        compared(writing, False, kind=kind)
    assert torch.equal(Net().one.weight, before)


def product(*operands: Any, weights: Any = ()) -> Tensor:
    with torch.no_grad(), StandIns(weights):
        result: Tensor = F.linear(*operands)
    return result


def test_a_stand_in_depends_on_both_operands() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(600, 64), torch.randn(96, 64)
    given = product(x, w)
    assert given.shape == (600, 96)
    assert not torch.allclose(given, F.linear(x, w))
    for other in ((x.flip(0), w), (x.flip(1), w), (x, w.flip(0)), (x, w.flip(1))):
        assert not torch.allclose(product(*other), given)
    assert torch.equal(product(x.flip(0), w).flip(0), given)


def test_rows_of_a_weight_are_those_of_the_whole() -> None:
    weight = nn.Parameter(torch.randn(3 * 128, 128))
    x = torch.randn(600, 128)
    whole = product(x, weight, weights=[weight]).split(128, -1)
    with torch.no_grad(), StandIns([weight]):
        parts = [F.linear(x, part) for part in weight.split(128)]
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert not torch.allclose(parts[0], parts[1])


@pytest.mark.parametrize("groups", [1, 2])
def test_a_stand_in_of_a_convolution_tells_channels_and_places_apart(groups: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 32, 24, 20), nn.Parameter(torch.randn(64, 32 // groups, 3, 3))

    def convolved(x: Tensor, weight: Tensor = weight) -> Tensor:
        with torch.no_grad(), StandIns([weight]):
            return F.conv2d(x, weight, padding=1, groups=groups)

    given = convolved(x)
    assert given.shape == (2, 64, 24, 20)
    assert not torch.allclose(given, F.conv2d(x, weight, padding=1, groups=groups))
    for other in (x.flip(1), x.flip(2), x.flip(3)):
        assert not torch.allclose(convolved(other), given)


class Asking(nn.Module):
    """Asks for the mode in a way that names it, by a name put together, or not at all."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.drop = how, nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.how and getattr(self, f"train{self.how}"):
            return x + 1
        return torch.relu(self.drop(x))


class Naming(Asking):
    def forward(self, x: Tensor) -> Tensor:
        return x if self.drop.training else x + 1


def test_code_that_reads_a_mode_is_noticed() -> None:
    assert asks_for_modes(nn.Sequential(Naming("")))
    assert not asks_for_modes(Asking(""))
    assert asks_for_modes(nn.Sequential(nn.Dropout(1.0)))
    sample = Sample((torch.randn(3, 4),), {})
    for net, found in ((Asking(""), ""), (Asking("ing"), "AttributeError")):
        with in_mode(net, True), hidden_modes(net):
            assert programs_part(net, sample).startswith(found)
        assert vars(net)["training"]


def programs_part(net: nn.Module, sample: Sample) -> str:
    try:
        return Programs(net).part(net, net, sample)
    except UnjudgedError as error:
        return str(error)
