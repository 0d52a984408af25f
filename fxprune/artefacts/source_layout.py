"""How generated source is laid out."""

from __future__ import annotations

import keyword

__all__ = ["call", "is_plain_name"]

_WIDTH = 120


def call(head: str, arguments: list[str], indent: int, tail: str = ")", reserve: int = 0) -> str:
    """``head`` + arguments + ``tail`` on one line if it fits, else one argument a line.

    ``indent`` is that of the statement, ``reserve`` what stands before ``head`` on its line.
    """
    line = head + ", ".join(arguments) + tail
    if "\n" not in line and indent + reserve + len(line) <= _WIDTH:
        return line
    inner = " " * (indent + 4)
    return head + "\n" + "".join(f"{inner}{argument},\n" for argument in arguments) + " " * indent + tail


def is_plain_name(text: str) -> bool:
    """Whether the text can stand in source as a name."""
    return text.isidentifier() and not keyword.iskeyword(text)
