"""One pass keeps sums and nothing else, whatever the number of batches."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

import fxprune
from fxprune.calibration import Calibration, Collector, Observation, Seen, TapFinder
from fxprune.capture.samples import Sample
from fxprune.util.progress import Steps
from tests.criteria.calibrated import Small, batches, images


class Watching:
    """Fails if anything that it was shown in an earlier batch is still held by someone."""

    def __init__(self, needs: str) -> None:
        self.needs = needs
        self.shown: list[weakref.ReferenceType[Any]] = []

    def update(self, seen: Seen) -> None:
        assert all(reference() is None for reference in self.shown[:-1])
        self.shown.append(weakref.ref(seen.value))

    def sums(self) -> list[Tensor]:
        return []


@pytest.mark.parametrize("needs", ["value", "gradient", "sample gradient"])
def test_batches_are_not_kept_in_memory(needs: str) -> None:
    model, sample = Small(), images(2)[0]
    graph = fxprune.analyze(model, sample)
    finder = TapFinder(graph)
    taps = [tap for group in graph.groups for tap in finder.taps(group)]
    watching = [Observation(tap, Watching(needs)) for tap in taps]
    gc.disable()
    try:
        Collector(graph, model, Calibration(batches(2), Sample.from_input(sample))).collect(watching)
    finally:
        gc.enable()
    assert all(len(o.statistic.shown) == (12 if needs == "sample gradient" else 6) for o in watching)  # type: ignore[attr-defined]


def test_progress_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Steps(True) as steps:
        assert list(steps.counted("calibrate", range(3), 3)) == [0, 1, 2]
        assert list(steps.counted("calibrate", iter(range(2)), None)) == [0, 1]


def test_a_raw_tap_and_random_state() -> None:
    model, sample = Small(), images(2)[0]
    graph = fxprune.analyze(model, sample)
    finder = TapFinder(graph)
    shapes: list[tuple[int, ...]] = []

    class Shapes(Watching):
        def update(self, seen: Seen) -> None:
            shapes.append(tuple(seen.value.shape))

    node = next(n for n in graph.captured.graph.nodes if str(n.target) == "head")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    data = Calibration(batches(5), Sample.from_input(sample))
    Collector(graph, model, data).collect([Observation(finder.raw(node), Shapes("value"))])
    assert shapes == [(5, 5), (5, 5), (2, 5)]
    assert torch.equal(torch.get_rng_state(), before)
