"""What code can see where it asks whether a selection is empty.

If it asks in an ``if``, and sees the same at each question whatever the answers before were, then it goes from one
question to the next by one answer alone, and cannot do anything that depends on several of them together.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from fxprune.capture.numbers import Traced
from fxprune.capture.sources import condition_asked, user_frames

_LITERALS = (int, float, complex, str, bytes, type(None), type(...), torch.dtype, torch.device, range, slice)
_NAMED = (types.FunctionType, types.BuiltinFunctionType, type, types.ModuleType)
_DEPTH = 6


class _Held(NamedTuple):
    """What holds others: its kind, which for the variables of a function is where that is, and its parts."""

    kind: Any
    parts: dict[Any, Any]


class Moments:
    """The questions of one trace, and the returns of modules in which something was asked, with what code sees there.

    ``unclear``: whether it may keep an answer elsewhere: in an expression that is not finished, or in a function that
    asked and returned inside its module.
    """

    def __init__(self) -> None:
        self.unclear = False
        self._watched: tuple[Callable[[], Any], ...] = ()
        self._paths: Mapping[int, str] = {}
        self._found: list[Any] = []
        self._asking: list[types.FrameType] = []
        self._conditions: dict[tuple[types.CodeType, int | None], int] = {}
        self._last: Any = None

    def watch(self, paths: Mapping[int, str], *watched: Callable[[], Any]) -> None:
        """What tells modules apart, by identity, and what gives the state that code may change."""
        self._paths, self._watched = paths, watched

    def are_as_in(self, other: Moments) -> bool:
        """Whether two traces ask at the same places, and see the same there."""
        clear = not self.unclear and not other.unclear and len(self._found) == len(other._found)
        return clear and all(map(_agree, self._found, other._found))

    def asked(self) -> None:
        """The code asks now whether a selection is empty."""
        frames = list(user_frames())
        if not frames or self.unclear:  # no code asks once the forward is over
            return
        frame = frames[0]
        line = condition_asked(frame)
        # C code that asks more than once does so while the variables of the code stay as they are.
        seen = frame, frame.f_lasti, {name: id(value) for name, value in frame.f_locals.items()}
        one_place = self._conditions.setdefault((frame.f_code, line), frame.f_lasti) == frame.f_lasti
        self.unclear = line is None or seen == self._last or not one_place or not {*self._asking} <= {*frames}
        self._last = seen
        self._asking += [frame] * (frame not in self._asking)
        self._note(frames)

    def returned(self, value: Any) -> None:
        """A module returns a value."""
        frames = {*user_frames()} if self._asking else set()
        running = [frame for frame in self._asking if frame in frames]
        if len(running) < len(self._asking):
            self._asking = running
            self._note(value)

    def _note(self, value: Any) -> None:
        with torch._C.DisableTorchFunction():
            state = [watched() for watched in self._watched]
            self._found.append(self._seen([value, state], {}, "", _DEPTH))

    def _seen(self, value: Any, names: dict[int, str], at: str, depth: int) -> Any:
        """A value, as far as code may tell it from another; ``names``: those of the tensors that were seen before."""
        if isinstance(value, nn.Module):
            return nn.Module, self._paths.get(id(value), object())
        if isinstance(value, fx.Node):
            return fx.Node  # what a number was read of, which the graph tells
        if isinstance(value, _LITERALS + _NAMED) and not isinstance(value, Traced):
            return type(value), value
        kind, held = _parts(value) if depth else (object(), {})
        if isinstance(value, torch.Tensor):
            kind = [torch.Tensor, value.dtype, value.dim(), names.setdefault(id(value), at)]
        return _Held(kind, {key: self._seen(part, names, f"{at}.{key}", depth - 1) for key, part in held.items()})


def _parts(value: Any) -> tuple[Any, dict[Any, Any]]:
    """What a value is, and what it holds; of a kind that is unlike anything where that cannot be told."""
    if isinstance(value, types.FrameType):
        return (value.f_code, value.f_lasti), dict(value.f_locals)
    if isinstance(value, Traced):
        return value.function, dict(enumerate(value.operands))
    if isinstance(value, torch.Tensor):  # code may hang numbers on it
        return torch.Tensor, vars(value)
    if isinstance(value, types.MethodType):
        return value.__func__, {"self": value.__self__}
    if isinstance(value, (list, tuple, deque)):
        return type(value), dict(enumerate(value))
    if isinstance(value, Mapping):
        return type(value), dict(enumerate(part for pair in value.items() for part in pair))
    is_own = type(value).__module__.partition(".")[0] not in ("torch", "builtins") and hasattr(value, "__dict__")
    return (type(value), vars(value)) if is_own else (object(), {})


def _agree(one: Any, other: Any) -> bool:
    """Whether code sees the same. A variable that is not set in one of the traces cannot be read in both."""
    if not isinstance(one, _Held) or not isinstance(other, _Held):
        return bool(one == other)
    both = one.parts.keys() & other.parts.keys()
    whole = len(both) == len(one.parts) == len(other.parts) or isinstance(one.kind, tuple)
    return whole and one.kind == other.kind and all(_agree(one.parts[key], other.parts[key]) for key in both)
