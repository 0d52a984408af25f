"""Batch of one, fixed batches, no batch at all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxprune
from tests.capture.compiled import assert_equal_copy, captured, image, pruned, vector


class Net(nn.Module):
    """Flattens by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3), nn.Linear(12 * 16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b(self.a(x).relu())
        return self.last(x.view(x.size(0), -1))


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_a_sample_of_any_batch_gives_a_network_for_every_batch(batch: int) -> None:
    result = pruned(Net(), image(batch))
    for other in (1, 2, 5):
        assert result(image(other)).shape == (other, 4)


def test_macs_are_those_of_the_sample() -> None:
    one, three = (fxprune.report(fxprune.compile(Net(), image(b), 0.3, verify=False)) for b in (1, 3))
    assert three.macs_before == 3 * one.macs_before
    assert three.plan.keep.keys() == one.plan.keep.keys()


def test_the_plan_does_not_depend_on_the_batch() -> None:
    model = Net()
    plans = [fxprune.plan(model, image(b), 0.4) for b in (1, 2, 5)]
    assert plans[0] == plans[1] == plans[2]


class Fixed(Net):
    """Takes batches of four only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[0] == 4, "this net takes batches of four"
        x = self.b(self.a(x).relu()).reshape(4, 12 * 16)
        return self.last(x)


def test_a_fixed_batch() -> None:
    result = pruned(Fixed(), image(4))
    assert result(image(4)).shape == (4, 4)
    proof = fxprune.report(result).proof
    assert proof is not None
    assert proof.batch_sizes == (4,)
    assert any("refuses" in note for note in proof.notes)


class FixedToOne(Net):
    """Takes single images only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] != 1:
            raise ValueError("this net takes one image")
        return self.last(self.b(self.a(x).relu()).reshape(1, 12 * 16))


def test_a_batch_fixed_to_one() -> None:
    result = pruned(FixedToOne(), image(1))
    assert result(image(1)).shape == (1, 4)


class Recurrent(nn.Module):
    """Time first, batch second."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).relu() * state)


def test_a_batch_that_is_not_first() -> None:
    result = pruned(Recurrent(), (torch.randn(5, 2, 8), torch.randn(2, 1)))
    assert result(torch.randn(6, 3, 8), torch.randn(3, 1)).shape == (6, 3, 4)


def test_no_batch_at_all() -> None:
    result = pruned(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(8))
    assert result(torch.randn(8)).shape == (4,)


def test_a_width_equal_to_the_batch_is_not_taken_for_it() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    result = pruned(model, vector(6, 6))
    assert result(vector(2, 6)).shape == (2, 6)
    assert_equal_copy(model, vector(6, 6), vector(3, 6))


def test_a_batch_of_one_is_traced_as_two() -> None:
    assert captured(Net(), image(2)).sample.batch_size == 2
    graph = fxprune.analyze(Net(), image(1))
    assert graph.captured.sample.batch_size == 2


class Frames(nn.Module):
    """Frames of clips in one batch, divided among the clips again in a call that may fail."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        clips = x.shape[0]
        frames = torch.relu(self.first(x.flatten(0, 1)))
        try:
            if frames.shape[0] % clips != 0:
                raise ValueError("frames are missing")
            steps = frames.shape[0] // clips
        except TypeError:
            steps = -1
        made: torch.Tensor = self.last(frames.view(clips, steps, -1))
        return made


def test_a_division_that_might_fail_fixes_no_batch() -> None:
    model = Frames().eval()
    pruned = fxprune.compile(model, torch.randn(2, 4, 6), 0.5)
    assert pruned.get_parameter("first.weight").shape[0] < 16
    assert pruned(torch.randn(5, 4, 6)).shape == (5, 4, 3)
