"""Numbers that a forward draws outside torch: a trace meets them once, and its graph would repeat them for ever."""

from __future__ import annotations

import random
from typing import Any, cast

import numpy as np

# What generators give in other traces: the least, the most, and all between in steps, so that each side of a threshold
# and each of up to 16 choices is met.
CHANCES = (0, 2**32 - 1, *range(2**27, 2**32, 2**28))


def _word(number: int) -> int:
    """The word in the state of a Mersenne twister from which it makes ``number``: its tempering undone."""
    for left, right, mask in ((0, 18, ~0), (15, 0, 0xEFC60000), (7, 0, 0x9D2C5680), (0, 11, ~0)):
        tempered = number
        for _ in range(4):
            number = tempered ^ (number << left >> right & mask)
    return number


class OtherRandomStates:
    """The states of numpy's and Python's generators; a number of ``CHANCES`` puts others in their place."""

    def __init__(self, *chance: int) -> None:
        self._before = self._states()
        for number in chance:
            # Behind equal words come drawn ones, so that a forward which draws until a number fits comes to an end.
            drawn = random.Random(number)
            words = [_word(number)] * 500 + [drawn.getrandbits(32) for _ in range(124)]
            random.setstate((3, (*words, 0), None))
            np.random.set_state(cast(Any, ("MT19937", words, 0)))
        self._begun = self._states()

    @staticmethod
    def _states() -> tuple[Any, ...]:
        name, words, *more = cast(Any, np.random.get_state())
        return random.getstate(), (name, tuple(words), *more)

    def were_used(self) -> bool:
        """Whether numbers were drawn since."""
        return self._states() != self._begun

    def restore(self) -> None:
        """Put the states back."""
        python, numpy = self._before
        random.setstate(python)
        np.random.set_state(numpy)
