"""Ctrl-C at any line of the pass: model, data, settings and random generators of the process are as they were."""

from __future__ import annotations

import contextlib
import linecache
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from tests.test_untouched import unchanged

PACKAGE = str(Path(fxprune.__file__).parent)
POINTS = 16


class Small(nn.Module):
    """A norm, dropout, a tie and buffers, and little to compute."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.second, self.third, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.third.weight = self.second.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(self.norm(self.first(x)))
        return self.last(self.third(self.second(x).softmax(-1)))


def used() -> Small:
    model = Small()
    model(torch.randn(4, 4)).sum().backward()
    model.norm.eval()
    model.first.requires_grad_(False)
    return model


def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.ones(3, 4) / 2, torch.tensor([0, 1, 2]))]


def is_with(frame: FrameType) -> bool:
    """Whether a frame is at a with statement: a tracer sees its line again between its body and its end, where Python
    delivers no signal."""
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with ")


def lines_of(action: Callable[[], Any], stop_at: int = -1, inside: str = "") -> int:
    """Run, count the lines of the package, or of its functions of this name, and interrupt at one of them."""
    count = 0

    def in_package(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if event == "line" and not is_with(frame):
            count += 1
            if count == stop_at:
                raise KeyboardInterrupt
        return in_package

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        ours = frame.f_code.co_filename.startswith(PACKAGE) and inside in ("", frame.f_code.co_name)
        return in_package if ours else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return count


CALLS: dict[str, Callable[[nn.Module], Any]] = {
    "compile": lambda model: fxprune.compile(model, torch.ones(2, 4), 0.4, criterion="random"),
    "calibrated": lambda model: fxprune.compile(
        model, torch.ones(2, 4), 0.4, criterion="taylor", calibration=data(), recover=["batchnorm"]
    ),
    "drop": lambda model: fxprune.analyze(model, torch.ones(2, 4), couplings="drop"),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_interruption_at_any_line_leaves_everything_alone(name: str) -> None:
    model, call = used(), CALLS[name]
    lines = lines_of(lambda: unchanged(model, lambda: call(model)))
    draw, stopped = random.Random(name), 0
    for stop_at in sorted(draw.sample(range(1, lines), POINTS)):
        torch.manual_seed(0)

        def interrupted(stop_at: int = stop_at) -> None:
            nonlocal stopped
            with contextlib.suppress(KeyboardInterrupt):
                lines_of(lambda: call(model), stop_at)
                stopped -= 1
            stopped += 1

        unchanged(model, interrupted)
    assert stopped > POINTS // 2
    unchanged(model, lambda: call(model))


def test_an_interruption_at_a_lock_does_not_stop_the_next_call() -> None:
    model = Small()
    call = lambda: fxprune.analyze(model, torch.ones(2, 4))  # noqa: E731
    for stop_at in range(1, 1 + lines_of(call, inside="remembering")):
        with contextlib.suppress(KeyboardInterrupt):
            lines_of(call, stop_at, inside="remembering")
        call()
