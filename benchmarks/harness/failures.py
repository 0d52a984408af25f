"""Exceptions in a few words, for a cell of a table."""

from __future__ import annotations

_LENGTH = 300


def failure_text(error: BaseException) -> str:
    """The exception's type and the beginning of its message, on one line."""
    message = " ".join(str(error).split())
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return text if len(text) <= _LENGTH else text[: _LENGTH - 3] + "..."
