"""Arbitrary networks for which images of other sizes go another way: every graph equals the oracles."""

from __future__ import annotations

import random
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.errors import FxpruneError, ProofError
from tests.nets.oracles import maximum_ratio, narrow_twin
from tests.nets.specification import Specification
from tests.nets.strategy import random_specification
from tests.nets.values import in_double
from tests.test_random_nets import assert_same_outputs, assert_trains, kept

# Networks with one image as their input are two in five.
SEEDS = range(60)


def fitted(model: nn.Module, sides: tuple[int, int]) -> nn.Module:
    """The network behind a question: an image of another size than its own is brought to it."""

    class Fitted(type(model)):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[2] != sides[0] or x.shape[3] != sides[1]:
                x = F.adaptive_avg_pool2d(x, sides)
            return super().forward(x)

    model.__class__ = Fitted
    return model


def check(specification: Specification, seed: int) -> bool:
    """Compile the network and compare it with its narrow twin at three sizes; False where nothing could go."""
    chance, (channels, *own) = random.Random(seed), specification.inputs[0].shape
    sides, ratio = (own[0], own[1]), chance.random() * maximum_ratio(specification)
    others = [side for side in range(2, 40) if side not in sides]  # a side that stays is one more way to go
    size = chance.choice(others), chance.choice(others)
    model = fitted(specification.build(), sides)
    try:
        pruned = fxprune.compile(model, specification.sample(2), ratio, progress=False)
    except ProofError:
        raise
    except FxpruneError:
        return False
    assert_trains(specification, deepcopy(pruned))
    pruned = pruned.eval().double()
    twin = fitted(narrow_twin(specification, model.double(), kept(pruned)), sides)
    for given in (sides, size, size[::-1]):
        assert_same_outputs(pruned, twin, in_double((torch.randn(2, channels, *given),)))
    return True


@pytest.mark.parametrize("part", range(4))
def test_arbitrary_networks_equal_their_oracles_at_other_sizes(part: int) -> None:
    checked = 0
    for seed in SEEDS[part::4]:
        specification = random_specification(seed)
        shapes = [entry.shape for entry in specification.inputs]
        if len(shapes) == 1 and len(shapes[0]) == 3:
            checked += check(specification, seed)
    assert checked >= 3
