"""Python's own state: what a forward finds in attributes, containers, classes and globals, and what it leaves there.

A graph forgets. A number that the forward changes for its next call (a step counter, a growing probability) must not
reach the graph, nor decide which way the forward goes. So a forward that changes any is traced again with numbers in
their places that know where they came from.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from torch import fx, nn

from fxprune.capture.numbers import Traced, plain, traced
from fxprune.errors import CaptureError

__all__ = ["Place", "PythonState", "check_forgotten"]

# What holds a value, in words that are the same for each copy of a model, and the attribute, key or index.
Place = tuple[str, Any]

_LITERALS = (int, float, bool, str, type(None))
_OWN = frozenset(vars(nn.Module()))
_FOREIGN = ("torch", "builtins", "numpy", "functools", __name__.partition(".")[0])
_LENGTH = "its length"
_DEPTH = 4
# Larger tables, and what they hold, are taken for what code looks up and no forward changes.
_MOST = 64


class PythonState:
    """The literals that a private copy of a model can reach outside of its tensors, before its forward runs."""

    def __init__(self, model: nn.Module, prefix: str = "") -> None:
        """``prefix``: the path of ``model``, and a dot, in the model that it is a part of."""
        self._model, self._prefix = model, prefix
        self._before = self._literals()

    def written(self) -> dict[Place, Any]:
        """What the forward wrote since: values that are new or that changed, by their places."""
        after, missing = self._literals(), object()
        return {
            place: value
            for place, (_, value) in after.items()
            if _differ(self._before.get(place, (None, missing))[1], value)
        }

    def watch(self, written: Mapping[Place, Any], node: fx.Node) -> None:
        """Put numbers that know where they came from, and other values as a call leaves them, in these places."""
        holders = dict(_holders(self._model, self._prefix))
        for place, value in written.items():
            holder = holders.get(place[0])
            if holder is not None and place[1] != _LENGTH:
                _put(holder, place[1], traced(plain(value), _left_by_a_call, (node, place)))

    def restore(self) -> None:
        """Give classes, globals and what they hold the values from before; the model itself is left alone."""
        for place, (holder, value) in {**self._literals(), **self._before}.items():
            words, key = place
            if words.startswith(("module ", "model")):
                continue
            if place not in self._before:
                _remove(holder, key)
            elif _differ(dict(_items(holder)).get(key), value):
                _put(holder, key, value)

    def _literals(self) -> dict[Place, tuple[Any, Any]]:
        """By place, what holds a literal there, and the literal."""
        found: dict[Place, tuple[Any, Any]] = {}
        for words, holder in _holders(self._model, self._prefix):
            for key, value in _items(holder):
                if type(value) in _LITERALS or isinstance(value, Traced):
                    found[words, key] = holder, value
        return found


def _left_by_a_call(node: fx.Node, place: Place) -> None:
    """Marks where a number came from; no graph calls it."""


def check_forgotten(value: Any) -> None:
    """Refuse a number that an earlier call left.

    Raises:
        CaptureError: says which.
    """
    pending = [value]
    while pending:
        top = pending.pop()
        if isinstance(top, Traced):
            if top.function is _left_by_a_call:
                words, key = top.operands[1]
                raise CaptureError(
                    f"the forward reads {key!r} of the {words}, which it changes itself: a graph forgets what a call "
                    "leaves for the next one; keep such state in a buffer, or pass it as an argument"
                )
            pending.extend(top.operands)


def _differ(before: Any, after: Any) -> bool:
    before, after = plain(before), plain(after)
    return before is not after and (type(before) is not type(after) or before != after)


# -- what holds values -------------------------------------------------------------------------------------------------


def _holders(model: nn.Module, prefix: str) -> Iterator[tuple[str, Any]]:
    """Everything that holds values, each in words: modules, their classes, the globals beside these, what they hold."""
    seen: set[int] = set()
    classes: dict[str, type] = {}
    for path, module in model.named_modules():
        full = f"{prefix}{path}".removesuffix(".")
        yield from _below(f"module {full}" if full else "model", module, seen, _DEPTH)
        for cls in type(module).__mro__:
            if not cls.__module__.startswith(("torch.", "builtins")):
                classes.setdefault(f"class {cls.__module__}.{cls.__qualname__}", cls)
    for words, cls in classes.items():
        yield from _below(words, cls, seen, _DEPTH)
    for name in dict.fromkeys(cls.__module__ for cls in classes.values()):
        if name in sys.modules:
            yield from _below(f"globals of {name}", vars(sys.modules[name]), seen, 2)
    for words, cls in classes.items():
        for cell in (c for f in vars(cls).values() for c in getattr(f, "__closure__", None) or ()):
            yield from _below(f"closure of {words}", cell, seen, 2)


def _below(words: str, holder: Any, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    if id(holder) in seen:
        return
    seen.add(id(holder))
    yield words, holder
    if depth:
        for key, value in _items(holder):
            if _is_holder(value):
                yield from _below(f"{words}, {key!r}", value, seen, depth - 1)


def _is_holder(value: Any) -> bool:
    if isinstance(value, (dict, list)):
        return len(value) <= _MOST
    cls = type(value)
    own = hasattr(value, "__dict__") and not cls.__module__.startswith(_FOREIGN)
    return own and not isinstance(value, (nn.Module, type)) and not callable(value)


def _items(holder: Any) -> list[tuple[Any, Any]]:
    if isinstance(holder, nn.Module):
        return [(name, value) for name, value in vars(holder).items() if name not in _OWN]
    if isinstance(holder, dict):
        return [(key, value) for key, value in holder.items() if not str(key).startswith("__")]
    if isinstance(holder, list):
        return [(_LENGTH, len(holder)), *enumerate(holder)]
    if type(holder).__name__ == "cell":
        return [("its value", value) for value in _contents(holder)]
    return [(name, value) for name, value in vars(holder).items() if not name.startswith("__")]


def _contents(cell: Any) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # empty
        return []


def _remove(holder: Any, key: Any) -> None:
    if isinstance(holder, dict):
        del holder[key]
    elif not isinstance(holder, list):
        delattr(holder, key)


def _put(holder: Any, key: Any, value: Any) -> None:
    if isinstance(holder, dict):
        holder[key] = value
    elif isinstance(holder, list):
        if key == _LENGTH:
            del holder[value:]
        elif key < len(holder):
            holder[key] = value
    elif type(holder).__name__ == "cell":
        holder.cell_contents = value
    elif isinstance(holder, type):
        setattr(holder, key, value)
    else:
        vars(holder)[key] = value
