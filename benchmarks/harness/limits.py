"""A time limit inside a process."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class TimeLimitReached(BaseException):
    """A call took longer than it was allowed to; as with KeyboardInterrupt, ``except Exception`` lets it pass."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt the Python code of the body after so many seconds; a single call into C is waited for.

    Raises:
        TimeLimitReached: the body was interrupted.
    """

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        del number, frame
        raise TimeLimitReached(f"more than {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
