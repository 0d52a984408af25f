"""Work grows in proportion to depth and not at all with width: counted in calls of functions, never in time."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from tests.test_scale import Grown, Stream, Wide, chain, vector

PACKAGE = str(Path(fxprune.__file__).parent)


def calls(action: Callable[[], Any]) -> int:
    """How many functions of the package are called, comprehensions and steps of generators included."""
    count = 0

    def profile(frame: FrameType, event: str, _: Any) -> None:
        nonlocal count
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            count += 1

    gc.collect()
    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


def pruned(model: nn.Module, verify: bool) -> Callable[[], Any]:
    return lambda: fxprune.compile(model.eval(), vector(), 0.3, verify=verify)


@pytest.mark.parametrize(("build", "verify"), [(chain, True), (Stream, False)], ids=["chain, proven", "stream"])
def test_twice_the_depth_is_twice_the_work(build: Callable[[int], nn.Module], verify: bool) -> None:
    calls(pruned(build(4), verify))  # fills what is made once
    small, medium, large = (calls(pruned(build(depth), verify)) for depth in (12, 24, 48))
    assert large - medium < 2.2 * (medium - small)


def test_a_dense_block_costs_what_its_concatenations_hold() -> None:
    """A concatenation of n pieces is n pieces long, so a block of n layers holds about n * n / 2."""
    calls(pruned(Grown(4), False))
    small, medium, large = (calls(pruned(Grown(depth), False)) for depth in (8, 16, 32))
    assert large - medium < 5 * (medium - small)


@pytest.mark.parametrize("build", [Wide, lambda n: nn.Sequential(nn.Linear(6, n), nn.ReLU(), nn.Linear(n, 4))])
def test_the_width_costs_nothing(build: Callable[[int], nn.Module]) -> None:
    calls(pruned(build(16), True))
    narrow, wide = calls(pruned(build(200), True)), calls(pruned(build(12_800), True))
    # The search for the budget bisects, and so takes a few steps more.
    assert wide < 1.3 * narrow + 500


@pytest.mark.parametrize("depth", [20, 80])
def test_no_function_recurses_with_depth(depth: int) -> None:
    deepest, base = 0, len_of_stack()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        nonlocal deepest
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            deepest = max(deepest, len_of_stack(frame) - base)

    model = chain(depth)
    sys.setprofile(profile)
    try:
        fxprune.compile(model, torch.randn(2, 6), 0.3)
    finally:
        sys.setprofile(None)
    assert deepest < 80


def len_of_stack(frame: FrameType | None = None) -> int:
    frame, length = frame or sys._getframe(), 0
    while frame is not None:
        frame, length = frame.f_back, length + 1
    return length
