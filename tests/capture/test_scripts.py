"""Functions compiled by TorchScript: what they do, and how they branch, is traced; what cannot be is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxprune
from fxprune.errors import CaptureError
from tests.capture.compiled import vector
from tests.nets.oracles import masked

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
Op = Callable[[torch.Tensor], torch.Tensor]


def by_batch(h: torch.Tensor, times: int) -> torch.Tensor:
    return torch.relu(h) * times if h.shape[0] > 2 else torch.relu(h)


def by_batch_twice(h: torch.Tensor) -> torch.Tensor:
    return by_batch(h, 2)


def written(h: torch.Tensor) -> None:
    h.mul_(2.0)


def doubled_batch(h: torch.Tensor) -> int:
    return h.size(0) * 2


def gated(h: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    return torch.tanh(h) * torch.sigmoid(gate)


def told_apart(h: torch.Tensor) -> torch.Tensor:
    return h * 2.0 if torch.jit.is_scripting() else h


def in_place(h: torch.Tensor) -> torch.Tensor:
    h = h + 1.0
    torch.jit.script(written)(h)
    return h


class Around(nn.Module):
    """Two layers around an operation."""

    def __init__(self, op: Op) -> None:
        super().__init__()
        self.first, self.op, self.last = nn.Linear(8, 8), op, nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.op(F.relu(self.first(x))))


WAYS: dict[str, Callable[[], Op]] = {
    "branch": lambda: lambda h: torch.jit.script(by_batch)(h, 3),
    "write": lambda: in_place,
    "size": lambda: lambda h: h * torch.jit.script(doubled_batch)(h),
    "gate": lambda: lambda h: torch.jit.script(gated)(h, h),
}


@pytest.mark.parametrize("verify", [True, False], ids=["proven", "unproven"])
@pytest.mark.parametrize("way", WAYS)
def test_a_compiled_function_is_traced_as_the_python_function_that_it_was_made_from(way: str, verify: bool) -> None:
    model = Around(WAYS[way]()).eval()
    result = fxprune.compile(model, vector(), 0.4, verify=verify)
    keep = fxprune.report(result).plan.keep
    assert keep["last.weight"][1] is not None
    for batch in (1, 2, 3, 7):
        x = torch.randn(batch, 8)
        torch.testing.assert_close(result(x), masked(model, keep)(x))


@pytest.mark.parametrize(
    "op",
    [
        lambda h: torch.jit.script(told_apart)(h),
        torch.jit.trace(torch.relu, torch.ones(2, 8)),
        torch.jit.script(nn.ReLU()),
    ],
    ids=["asks", "traced", "module"],
)
def test_what_runs_otherwise_than_its_python_code_is_refused(op: Op) -> None:
    with pytest.raises(CaptureError, match="TorchScript runs unseen"):
        fxprune.compile(Around(lambda h: op(h)), vector(), 0.4)


def test_calls_of_compiled_functions_are_as_before_once_a_capture_has_ended() -> None:
    before = torch.jit.ScriptFunction.__call__, torch._C.ScriptMethod.__call__
    fxprune.compile(Around(WAYS["gate"]()), vector(), 0.4)
    assert (torch.jit.ScriptFunction.__call__, torch._C.ScriptMethod.__call__) == before
