"""Surfaces: exact where a kernel is linear or a staircase, and never falling as a width grows."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from fxprune.cost.latency import SurfaceStack, measured_surface


@pytest.mark.parametrize("step", [1, 8, 16])
def test_a_staircase_is_found_and_looked_up_exactly(step: int) -> None:
    def seconds(widths: tuple[int, ...]) -> float:
        return 1.0 + math.ceil(widths[0] / step) * step * (3 + widths[1])

    surface = measured_surface((128, 96), seconds)
    assert surface.steps == (step, 1)
    stack = SurfaceStack([surface, surface])
    for widths in [(128, 96), (127, 50), (65, 33), (64, 96), (49, 17)]:
        assert stack.at(np.array([widths, widths], dtype=np.float64)) == pytest.approx([seconds(widths)] * 2)


def test_surfaces_of_several_sizes_are_looked_up_together() -> None:
    surfaces = [measured_surface((size,), lambda w: float(w[0])) for size in (1, 5, 40, 512)]
    assert SurfaceStack(surfaces).at(np.array([[1], [4], [20], [300]], dtype=np.float64)) == pytest.approx(
        [1, 4, 20, 300]
    )


def test_noise_never_makes_a_narrower_kernel_slower() -> None:
    noise = np.random.default_rng(0)
    surface = measured_surface((256, 256), lambda w: w[0] * w[1] * noise.uniform(0.5, 1.5))
    stack = SurfaceStack([surface])
    seen = [float(stack.at(np.array([[w, 200]], dtype=np.float64))[0]) for w in range(1, 257)]
    assert all(a <= b for a, b in itertools.pairwise(seen))
