"""Ratios of the steps, worked out by hand."""

from __future__ import annotations

import pytest

from fxprune.errors import OptionError, RatioError
from fxprune.schedules import ratio_at


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("linear", [0, 0.1875, 0.375, 0.5625, 0.75]),
        # 0.75 * (1 - (27, 8, 1) / 64)
        ("cubic", [0, 0.43359375, 0.65625, 0.73828125, 0.75]),
        # A quarter is left: the fourth root of it each time.
        ("geometric", [0, 1 - 0.5**0.5, 0.5, 1 - 0.5**1.5, 0.75]),
    ],
)
def test_worked_numbers(shape: str, expected: list[float]) -> None:
    assert [ratio_at(step, 4, 0.75, shape) for step in range(5)] == pytest.approx(expected, abs=1e-15)
    assert ratio_at(4, 4, 0.3, shape) == 0.3


def test_mistakes() -> None:
    with pytest.raises(RatioError, match="0 <= ratio < 1"):
        ratio_at(1, 2, 1.0)
    with pytest.raises(OptionError, match='shape must be "linear", "cubic" or "geometric"'):
        ratio_at(1, 2, 0.5, "square")
    with pytest.raises(OptionError, match="at least 1"):
        ratio_at(0, 0, 0.5)
    with pytest.raises(OptionError, match="from 0 to 2"):
        ratio_at(3, 2, 0.5)
