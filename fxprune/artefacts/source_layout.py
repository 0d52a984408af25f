"""How generated source is laid out."""

from __future__ import annotations

import keyword
import re

from torch import nn

__all__ = ["PART", "call", "is_plain_name", "quoted"]

_WIDTH = 120
_TAKEN = frozenset(vars(nn.Module()))
PART = '''
def part(module: nn.Module, name: str) -> nn.Module | torch.Tensor:
    """What a module holds under a name that cannot be written as an attribute."""
    tables = (module._modules, module._parameters, module._buffers)
    return next(table[name] for table in tables if name in table)
'''


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
    """Whether the text can stand in source as the name of a part: a word that means nothing else to a module.

    Two leading underscores would mean another name inside a class.
    """
    taken = keyword.iskeyword(text) or hasattr(nn.Module, text) or text in _TAKEN
    return bool(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text)) and not taken and not text.startswith(("__", "forward"))


def quoted(text: str) -> str:
    """A string literal of ASCII."""
    return f'"{text}"' if re.fullmatch(r"[A-Za-z0-9_.+ -]*", text) else ascii(text)
