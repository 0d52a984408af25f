"""Index lists as text: "0-31,40" is what a reviewer can read and a diff can show."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from fxprune.errors import PlanError

__all__ = ["parse_ranges", "write_ranges"]

IntArray = NDArray[np.int64]
_RANGE = re.compile(r"(\d{1,10})(?:-(\d{1,10}))?", re.ASCII)


def write_ranges(indices: IntArray) -> str:
    """Ascending indices as text; runs of two or more become "first-last"."""
    if not len(indices):
        return ""
    ends = np.flatnonzero(np.diff(indices) != 1)
    firsts = indices[np.concatenate([[0], ends + 1])].tolist()
    lasts = indices[np.concatenate([ends, [len(indices) - 1]])].tolist()
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(firsts, lasts, strict=True))


def parse_ranges(text: str, size: int, where: str, *, most: int) -> IntArray:
    """The indices that ``text`` lists, each in ``[0, size)``, strictly ascending.

    Bounds are checked before anything is expanded, and at most ``most`` indices are, so that a forged range cannot
    claim memory.

    Raises:
        PlanError: not a list of ranges, out of range, unsorted, repeated or too many; ``where`` says in
            which part of the plan.
    """
    pieces: list[IntArray] = []
    following = listed = 0
    for piece in text.split(","):
        match = _RANGE.fullmatch(piece)
        if match is None:
            raise PlanError(f'{where}: {piece[:40]!r} is not an index or a range such as "0-31"')
        first, last = int(match[1]), int(match[2] or match[1])
        if last >= size:
            raise PlanError(f"{where}: index {last} is out of range for {size} channels")
        if first < following or last < first:
            raise PlanError(f"{where}: indices must ascend without repeats; {piece!r} does not follow {following - 1}")
        listed += last + 1 - first
        if listed > most:
            raise PlanError(f"{where}: the plan lists more indices than any network has")
        pieces.append(np.arange(first, last + 1, dtype=np.int64))
        following = last + 1
    return np.concatenate(pieces)
