"""A helper of networks in a module of its own."""

from __future__ import annotations


def half_of(n: int) -> int:
    """A table's entry at half of a size."""
    return (1, 3, 5, 7, 11, 13, 17, 19, 23, 29)[n // 2]
