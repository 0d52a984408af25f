"""Repeated timing of one kind of call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TypeVar

from benchmarks.harness.failures import failure_text
from benchmarks.harness.limits import TimeLimitReached, time_limit

T = TypeVar("T")


class Clock:
    """Times calls until one fails or takes too long; later ones are then not made.

    Attributes:
        failure: why the last call gave nothing, or "".
    """

    def __init__(self, limit_seconds: float) -> None:
        self.failure = ""
        self._limit = limit_seconds
        self._seconds: list[float] = []

    def run(self, call: Callable[[], T]) -> T | None:
        """The result of ``call``, or None where it, or one before it, failed."""
        if self.failure:
            return None
        started = time.perf_counter()
        try:
            with time_limit(self._limit):
                result = call()
        except TimeLimitReached as error:
            self.failure = str(error)
            return None
        except Exception as error:  # another library's failure is a result, not an error of the measurement
            self.failure = failure_text(error)
            return None
        self._seconds.append(time.perf_counter() - started)
        return result

    @property
    def median(self) -> float | None:
        """Of the calls that came to their end."""
        return statistics.median(self._seconds) if self._seconds else None
