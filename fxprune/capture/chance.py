"""Random numbers that a forward draws outside torch: a graph would hold those of the trace for ever."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from fxprune.errors import CaptureError

__all__ = ["OtherChance"]


class OtherChance:
    """The states of numpy's and Python's generators as they were."""

    def __init__(self) -> None:
        self._python = random.getstate()
        self._numpy: Any = np.random.get_state()

    def refuse_draws(self) -> None:
        """Raise CaptureError if numbers were drawn since."""
        now: Any = np.random.get_state()
        if random.getstate() != self._python or not all(map(np.array_equal, now, self._numpy)):
            raise CaptureError(
                "the forward draws random numbers with numpy or Python's random module, which a graph would repeat at "
                "every call: draw them with torch"
            )

    def restore(self) -> None:
        """Put the states back."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
