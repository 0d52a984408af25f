"""The code of a result is generated when it is first looked up, in whatever way that happens."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import fx, nn

import fxprune
from fxprune.proof import attributes


class Doubles(nn.Module):
    """Computes something else in training mode, and has a part that is named like what is generated."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, width, 3), nn.Conv2d(width, 4, 3)
        self._modules["forward"] = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = self._modules["forward"]
        assert norm is not None
        x = norm(self.first(x))
        return self.last(x * 2 if self.training else x)


def images() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8)


def untouched(*, training: bool = False) -> fx.GraphModule:
    """A result that nobody has looked at."""
    torch.manual_seed(0)
    return fxprune.compile(Doubles().train(training), images(), 0.3, verify=False)


def by_hand(pruned: nn.Module) -> nn.Module:
    """The same network, built narrow."""
    twin = Doubles(len(pruned.get_parameter("first.weight")))
    twin.load_state_dict(pruned.state_dict())
    return twin.train(pruned.training)


LOOKS: dict[str, Callable[[fx.GraphModule], object]] = {
    "call": lambda pruned: pruned(images()),
    "code": lambda pruned: pruned.code,
    "print": str,
    "signature": lambda pruned: inspect.signature(pruned.forward),
    "class": lambda pruned: type(pruned).forward.__code__,
    "copy": copy.deepcopy,
    "pickle": lambda pruned: pickle.loads(pickle.dumps(pruned)),
    "recompile": lambda pruned: pruned.recompile(),
    "modes": lambda pruned: pruned.train().eval(),
    "proof": attributes.check_code,
    "plan": lambda pruned: fxprune.compile(pruned, images(), 0.1, verify=False),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("look", LOOKS)
def test_a_result_computes_the_same_however_it_was_first_looked_at(look: str, training: bool) -> None:
    pruned, sample = untouched(training=training), images()
    LOOKS[look](pruned)
    pruned.train(training)
    twin = by_hand(pruned)
    torch.testing.assert_close(pruned(sample), twin(sample))
    torch.testing.assert_close(pruned.train(not training)(sample), twin.train(not training)(sample))


def test_a_result_of_a_result_that_was_never_called_is_proven() -> None:
    pruned, sample = untouched(), images()
    again = fxprune.compile(pruned, sample, 0.2)
    assert fxprune.report(again).proof is not None
    torch.testing.assert_close(again(sample), by_hand(again)(sample))


def test_the_first_calls_may_come_from_several_threads() -> None:
    pruned, samples = untouched(), [images() for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(pruned, samples))
    twin = by_hand(pruned)
    for value, sample in zip(found, samples, strict=True):
        torch.testing.assert_close(value, twin(sample))


def test_a_copy_has_its_code_at_once() -> None:
    assert "forward" in vars(type(copy.deepcopy(untouched())))
    assert inspect.isfunction(vars(type(copy.deepcopy(untouched())))["forward"])
