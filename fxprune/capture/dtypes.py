"""Which dtype arguments were read from a tensor, and which are literals of the source.

A dtype object cannot carry its origin, so the reads are noted, and a dtype that is passed on counts as read unless the
line that passes it also spells it out.
"""

from __future__ import annotations

import dis
import types
from functools import lru_cache

import torch
from torch import fx

_SPELLINGS: dict[torch.dtype, set[str]] = {}
for _name in dir(torch):
    if isinstance(_dtype := getattr(torch, _name), torch.dtype):
        _SPELLINGS.setdefault(_dtype, set()).add(_name)


class DtypeReads:
    """Reads of ``tensor.dtype``, newest last."""

    def __init__(self) -> None:
        self._reads: dict[torch.dtype, fx.Node] = {}

    def read(self, dtype: torch.dtype, node: fx.Node) -> None:
        """Note that ``node``'s dtype was read."""
        self._reads[dtype] = node

    def origin(self, dtype: torch.dtype, frame: types.FrameType | None) -> fx.Node | None:
        """The node whose dtype an argument is, or None for a literal."""
        if dtype not in self._reads or frame is None:
            return None
        spelled = _names_on_line(frame.f_code, frame.f_lineno) & _SPELLINGS[dtype]
        return None if spelled else self._reads[dtype]


@lru_cache(maxsize=4096)
def _names_on_line(code: types.CodeType, line: int) -> frozenset[str]:
    names: set[str] = set()
    current = code.co_firstlineno
    for instruction in dis.get_instructions(code):
        starts = instruction.starts_line
        if isinstance(starts, int) and not isinstance(starts, bool):
            current = starts
        elif starts is True:
            current = getattr(instruction, "line_number", None) or current
        if current == line and isinstance(instruction.argval, str):
            names.add(instruction.argval)
    return frozenset(names)
