"""Smaller networks that fail in the same way, by leaving out and lowering the choices that made one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.nets.draft import SeededChooser


class RecordingChooser(SeededChooser):
    """A seeded chooser that remembers, as distances from the lowest answer."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.choices: list[int] = []

    def integer(self, low: int, high: int) -> int:
        """Return a uniform integer."""
        chosen = super().integer(low, high)
        self.choices.append(chosen - low)
        return chosen


class ReplayingChooser:
    """Answers given before; when they are used up, the lowest."""

    def __init__(self, choices: Sequence[int]) -> None:
        self._left = list(reversed(choices))

    def integer(self, low: int, high: int) -> int:
        """Return the next choice, or the nearest that is allowed."""
        return min(high, low + (self._left.pop() if self._left else 0))


def reduced(choices: Sequence[int], fails: Callable[[Sequence[int]], bool], tries: int = 40) -> list[int]:
    """Return choices that still fail: runs of them left out, then single ones set to the lowest."""
    best = list(choices)

    def attempt(candidate: list[int]) -> bool:
        nonlocal best, tries
        tries -= 1
        if tries >= 0 and candidate != best and fails(candidate):
            best = candidate
            return True
        return False

    for size in (24, 12, 6, 2):
        at = 0
        while at < len(best) and tries > 0:
            if not attempt(best[:at] + best[at + size :]):
                at += size
    for at in range(len(best)):
        if at < len(best) and best[at]:
            attempt([*best[:at], 0, *best[at + 1 :]])
    return best
