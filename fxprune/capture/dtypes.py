"""Which dtype arguments were read from a tensor, and which are literals of the source.

A dtype object cannot carry its origin, so the reads are noted, and a dtype that is passed on counts as read unless the
statement that passes it spells it out just before.
"""

from __future__ import annotations

import dis
import types
from functools import lru_cache

import torch
from torch import fx

from fxprune.errors import CaptureError

# Instructions that end a statement.
_ENDS = ("STORE_", "POP_TOP", "DELETE_", "RETURN_", "RAISE_")
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
        return None if _is_spelled_out(dtype, frame) else self._reads[dtype]


def _is_spelled_out(dtype: torch.dtype, frame: types.FrameType) -> bool:
    """Whether the last name of a dtype that the running statement loaded is that of a literal."""
    for name in _names_before(frame.f_code, frame.f_lasti):
        if name in _SPELLINGS[dtype]:
            return True
        if name == "dtype" or frame.f_locals.get(name) is dtype:
            return False
    return False


@lru_cache(maxsize=4096)
def _names_before(code: types.CodeType, offset: int) -> tuple[str, ...]:
    """The names that a statement has loaded when it runs the instruction at ``offset``, the last one first."""
    names: list[str] = []
    for instruction in dis.get_instructions(code):
        if instruction.offset > offset:
            break
        if instruction.opname.startswith(_ENDS) or "JUMP" in instruction.opname:
            names.clear()
        elif isinstance(instruction.argval, str):
            names.append(instruction.argval)
        elif instruction.opname.startswith("LOAD_FAST"):  # two at once, in Python 3.13
            names.extend(instruction.argval)
    return tuple(reversed(names))


def refuse_autocast() -> None:
    """Raise CaptureError where the forward computes under autocast."""
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise CaptureError("the forward computes under torch.autocast, which a graph does not carry: use it outside")
