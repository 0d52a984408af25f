"""Python's own state: the numbers that a forward reads from and writes to attributes, containers, classes and globals.

A graph keeps no such state. A number that the forward changes for its next call (a step counter, a growing
probability) must not end up in the graph, nor decide on a branch. So a forward that changes such numbers
is traced again, with marked numbers in their places that show where they are used.
"""

from __future__ import annotations

import operator
import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar, copy_context
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, NoReturn, cast

import numpy as np
from torch import fx, nn

from fxprune.capture.numbers import Traced, plain, traced
from fxprune.capture.objects import SharedTensors, held_leaves
from fxprune.capture.reachable import STREAMS, Reachable, in_words, is_changeable, reachable, restored
from fxprune.errors import CaptureError
from fxprune.util.paths import modules_of, named_modules

# What holds a value, in words that are the same for each copy of a model, and the attribute, key or index.
Place = tuple[str, Any]

_LITERALS = frozenset((int, float, bool, str, type(None)))
_FROZEN = _LITERALS | {tuple}
_OWN = frozenset(vars(nn.Module()))
_FOREIGN = ("torch", "builtins", "numpy", "functools", __name__.partition(".")[0])
_FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType, type, nn.Module)
_LENGTH, _A_TENSOR = "its length", object()
_DEPTH = 4
# Larger tables, and what they hold, are taken for what code looks up and no forward changes.
_MOST = 64
# What generators give in other traces: the least, the most, and all between in steps, so that each side of a threshold
# and each of up to 16 choices is met.
CHANCES = (0, 2**32 - 1, *range(2**27, 2**32, 2**28))


class PythonState:
    """What a private copy can reach outside of tensors: literals, iterators, generators of numbers, arrays."""

    def __init__(self, model: nn.Module, shared: Reachable, prefix: str = "", *, own: bool = True) -> None:
        """``shared``: what the original's code reaches. ``prefix``: the path of ``model``, and a dot, in the whole.

        With ``own`` off, what only the model holds is ignored.
        """
        self._model, self._prefix, self._changeable = model, prefix, shared.changeable
        self._watching = False
        # A class that is watched while it is traced is set in the place of the original.
        watched = {type(module): None for module in modules_of(model) if type(module) not in shared.classes}
        self._shared = [*shared.holders, *((in_words(cls), cls) for cls in watched)]
        self._copies = [_copied(holder) for _, holder in self._shared]
        self._tensors = SharedTensors(self._shared, _items)
        held = list(self._holders()) if own else []
        self._inside = [(holder, _copied(holder)) for _, holder in held]
        self._own, self._inner = _literals(held), _literals(self._changeable)
        self._moves = any(isinstance(value, _Inner) for _, value in self._own.values())

    def written(self) -> dict[Place, Any]:
        """The values that the forward has added or changed since, by place."""
        before, after = self._shared_literals()
        current, missing = self._current_literals(), object()
        if current is not self._own:
            before, after = {**before, **self._own}, {**after, **current}
        found = {p: value for p, (_, value) in after.items() if _differ(before.get(p, (None, missing))[1], value)}
        return {**found, **dict.fromkeys(self._tensors.changed(), _A_TENSOR)}

    def watch(self, written: Mapping[Place, Any], node: fx.Node) -> None:
        """Put marked numbers, and the values that a call leaves, in these places; using an iterator is refused."""
        for place, (holder, value) in self._inner.items():
            if isinstance(value, _Inner) and value.is_one_pass:
                _put(holder, place[1], _Stream(place))
                self._watching = True
        self._watching |= bool(written)
        wanted = {words for words, _ in written}
        pairs = [*self._holders(), *self._shared] if wanted else []
        for words, holder in [pair for pair in pairs if pair[0] in wanted]:
            for place, value in written.items():
                if place[0] != words or place[1] == _LENGTH:
                    continue
                if value is not _A_TENSOR and not isinstance(value, _Inner):
                    _put(holder, place[1], traced(plain(value), _number_from_last_call, (node, place)))
                elif isinstance(getattr(value, "held", None), STREAMS):
                    _put(holder, place[1], _Stream(place))

    def unwatch(self) -> None:
        """Undo :meth:`watch`."""
        if self._watching:
            self.restore()

    def restore(self, *, own: bool = False) -> None:
        """Restore the earlier values of everything shared with other code, and with ``own`` those of the model too."""
        self._tensors.restore()
        # Holder by holder, as a class and the one that is watched in its place are called the same.
        for (words, holder), copy in zip(self._shared, self._copies, strict=True):
            if _is_changed(holder, copy):
                before = {place: (holder, value) for place, (_, value) in _literals([(words, copy)]).items()}
                _restore_values(before, _literals([(words, holder)]))
        _restore_values(self._inner, _literals(self._changeable))
        if own and (current := self._current_literals()) is not self._own:
            _restore_values(self._own, current)

    def _current_literals(self) -> dict[Place, Any]:
        """The literals that the model holds now; holders that hold the same objects as before are not looked into."""
        changed = self._moves or any(_is_changed(holder, copy) for holder, copy in self._inside)
        return _literals(self._holders()) if changed else self._own

    def _shared_literals(self) -> tuple[dict[Place, Any], dict[Place, Any]]:
        """The changes since to what is shared with other code: the values before and now."""
        both = zip(self._shared, self._copies, strict=True)
        changed = [(words, holder, copy) for (words, holder), copy in both if _is_changed(holder, copy)]
        before = {
            place: (holder, value)
            for words, holder, copy in changed
            for place, (_, value) in _literals([(words, copy)]).items()
        }
        after = _literals((words, holder) for words, holder, _ in changed)
        return {**before, **self._inner}, {**_literals(self._changeable), **after}

    def _holders(self) -> Iterator[tuple[str, Any]]:
        """Everything of the model that holds values, each in words."""
        seen: set[int] = set()
        for path, module in named_modules(self._model):
            full = f"{self._prefix}{path}".removesuffix(".")
            yield from _below(f"module {full}" if full else "model", module, seen, _DEPTH)


@contextmanager
def shared_objects_restored(model: nn.Module) -> Iterator[PythonState]:
    """Undo all changes that the code run inside makes to objects shared with the rest of the process."""
    with restored(model):
        outside = PythonState(model, reachable(model), own=False)
        try:
            yield outside
        finally:
            outside.restore()


def _literals(holders: Iterable[tuple[str, Any]]) -> dict[Place, Any]:
    """For each place, the object that holds a literal there, and the literal."""
    return {
        (words, key): (holder, value if type(value) in _LITERALS or not _is_inner(value) else _Inner(value))
        for words, holder in holders
        for key, value in _items(holder)
        if type(value) in _LITERALS or _is_inner(value) or isinstance(value, Traced)
    }


def _is_inner(value: Any) -> bool:
    return is_changeable(type(value)) and not isinstance(value, _Stream)


def _restore_values(before: Mapping[Place, tuple[Any, Any]], after: Mapping[Place, tuple[Any, Any]]) -> None:
    """Restore the earlier value wherever a holder now has another."""
    for place, (holder, value) in {**after, **before}.items():
        if place not in before:
            _remove(holder, place[1])
        elif place not in after or _differ(after[place][1], value):
            _put(after.get(place, (holder,))[0], place[1], value.as_before() if isinstance(value, _Inner) else value)


def _copied(holder: Any) -> Any:
    """The contents of a holder in a plain container: reading a holder of another class may run code."""
    if isinstance(holder, (list, deque)):
        return [*holder]
    if isinstance(holder, set):
        return {*holder}
    if isinstance(holder, nn.Module):
        own = vars(holder).copy()
        own.pop("training", None)
        return own
    return dict(dict.items(holder) if isinstance(holder, dict) else _items(holder))


def _is_changed(holder: Any, copy: Any) -> bool:
    now = _copied(holder)
    if len(now) != len(copy) or isinstance(now, set):
        return len(now) != len(copy)
    return not all(map(operator.is_, *((now, copy) if isinstance(now, list) else (now.values(), copy.values()))))


class _Inner:
    """The state inside an object, which may change while the object stays the same."""

    def __init__(self, held: Any) -> None:
        self.held = held
        if isinstance(held, np.ndarray):
            self.state: Any = (held.copy().tobytes(), held.shape, held.dtype.str) if held.size <= _MOST else ()
        elif isinstance(held, bytearray):
            self.state = bytes(held[:_MOST])
        elif isinstance(held, Iterator):
            self.state = (
                repr(held.__reduce__()) if type(held).__module__ == "itertools" else operator.length_hint(held, -1)
            )
        elif isinstance(held, random.Random):
            self.state = held.getstate()
        elif isinstance(held, ContextVar):
            self.state = _value_of(held)
        else:
            self.state = repr(_numpy_state(held))

    def __eq__(self, other: Any) -> bool:
        same = isinstance(other, _Inner) and self.held is other.held
        return same and (self.state is other.state or (not _is_tensor(self.state) and bool(self.state == other.state)))

    __hash__ = None  # type: ignore[assignment]

    @property
    def is_one_pass(self) -> bool:
        """Whether values taken from it cannot be taken again."""
        return isinstance(self.held, Iterator) and type(self.held).__module__ in ("builtins", "itertools")

    def as_before(self) -> Any:
        """The object with its earlier contents, where those can be written back."""
        if isinstance(self.held, np.ndarray) and self.state:
            self.held[...] = np.frombuffer(self.state[0], self.held.dtype).reshape(self.held.shape)
        elif isinstance(self.held, bytearray):
            self.held[:_MOST] = self.state
        elif isinstance(self.held, random.Random):
            self.held.setstate(self.state)
        elif isinstance(self.held, ContextVar):
            self.held.set(self.state)
        return self.held


def _is_tensor(value: Any) -> bool:
    return any(True for _ in held_leaves(value, 6))


def _value_of(variable: ContextVar[Any]) -> Any:
    """The value of a variable; the default if it was never set, as it cannot be unset again."""
    with suppress(LookupError):
        return variable.get() if variable in copy_context() else Context().run(variable.get)


class _Stream:
    """Stands for an iterator or a generator of random numbers that the forward moves on."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def __getattr__(self, name: str) -> Any:
        _refuse(self._place)

    def __next__(self) -> Any:
        _refuse(self._place)

    def __iter__(self) -> Any:
        _refuse(self._place)


def _number_from_last_call(node: fx.Node, place: Place) -> None:
    """Marks where a number came from; no graph calls it."""


def check_forgotten(value: Any) -> None:
    """Raise CaptureError for a number that an earlier call left."""
    pending = [value]
    while pending:
        top = pending.pop()
        if isinstance(top, Traced):
            if top.function is _number_from_last_call:
                _refuse(top.operands[1])
            pending.extend(top.operands)


def _refuse(place: Place) -> NoReturn:
    words, key = place
    raise CaptureError(
        f"the forward reads {key!r} of the {words}, which it changes itself: a graph forgets what a call leaves for "
        "the next one; keep such state in a buffer, or pass it as an argument"
    )


def _differ(before: Any, after: Any) -> bool:
    before, after = plain(before), plain(after)
    return before is not after and (type(before) is not type(after) or before != after)


# -- what holds values -------------------------------------------------------------------------------------------------


def _below(words: str, holder: Any, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    if id(holder) in seen:
        return
    seen.add(id(holder))
    yield words, holder
    if depth:
        for key, value in _items(holder):
            if type(value) not in _FROZEN and _is_holder(value):
                yield from _below(f"{words}, {key!r}", value, seen, depth - 1)


def _is_holder(value: Any) -> bool:
    if isinstance(value, (dict, list, deque, set)):
        return len(value) <= _MOST
    own = hasattr(value, "__dict__") or hasattr(value, "__slots__")
    return own and not type(value).__module__.startswith(_FOREIGN) and not isinstance(value, _FUNCTIONS)


def _items(holder: Any) -> list[tuple[Any, Any]]:
    if isinstance(holder, nn.Module):
        return [(name, value) for name, value in vars(holder).items() if name not in _OWN]
    if isinstance(holder, dict):
        return [(key, value) for key, value in dict.items(holder) if not str(key).startswith("__")]
    if isinstance(holder, (list, deque)):
        return [(_LENGTH, len(holder)), *enumerate(holder)]
    if isinstance(holder, set):
        return [(_LENGTH, len(holder))]
    if type(holder).__name__ == "cell":
        return [("its value", value) for value in _contents(holder)]
    slots = (name for cls in type(holder).__mro__ for name in getattr(cls, "__slots__", ()) if hasattr(holder, name))
    held = getattr(holder, "__dict__", {}) | {name: getattr(holder, name) for name in slots}
    return [(name, value) for name, value in held.items() if not name.startswith("__")]


def _numpy_state(generator: Any) -> Any:
    held: Any = generator if isinstance(generator, np.random.RandomState) else generator.bit_generator
    return held.get_state() if isinstance(held, np.random.RandomState) else held.state


def _contents(cell: Any) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # empty
        return []


def _remove(holder: Any, key: Any) -> None:
    if isinstance(holder, dict):
        del holder[key]
    elif not isinstance(holder, (list, deque, set)):
        delattr(holder, key)


def _put(holder: Any, key: Any, value: Any) -> None:
    if isinstance(holder, dict):
        holder[key] = value
    elif isinstance(holder, (list, deque)):
        if key == _LENGTH:
            while len(holder) > value:
                holder.pop()
        elif key < len(holder):
            holder[key] = value
    elif isinstance(holder, set):
        return  # what was put into it cannot be told from what was there
    elif type(holder).__name__ == "cell":
        holder.cell_contents = value
    elif isinstance(holder, type) or key not in getattr(holder, "__dict__", {}):
        setattr(holder, key, value)
    else:
        vars(holder)[key] = value


def _word(number: int) -> int:
    """The word in the state of a Mersenne twister from which it makes ``number``: its tempering undone."""
    for left, right, mask in ((0, 18, ~0), (15, 0, 0xEFC60000), (7, 0, 0x9D2C5680), (0, 11, ~0)):
        tempered = number
        for _ in range(4):
            number = tempered ^ (number << left >> right & mask)
    return number


class OtherRandomStates:
    """The states of numpy's and Python's generators, from which a trace draws but once, and its graph not again.

    A number of ``CHANCES`` puts others in their place.
    """

    def __init__(self, *chance: int) -> None:
        self._before = self._states()
        for number in chance:
            # Behind equal words come drawn ones, so that a forward which draws until a number fits comes to an end.
            drawn = random.Random(number)
            words = [_word(number)] * 500 + [drawn.getrandbits(32) for _ in range(124)]
            random.setstate((3, (*words, 0), None))
            np.random.set_state(cast(Any, ("MT19937", words, 0)))
        self._begun = self._states() if chance else self._before

    @staticmethod
    def _states() -> tuple[Any, ...]:
        name, words, *more = cast(Any, np.random.get_state())
        return random.getstate(), (name, words.tobytes(), words.dtype, *more)

    def were_used(self) -> bool:
        """Whether numbers were drawn since."""
        return self._states() != self._begun

    def restore(self) -> None:
        """Put the states back."""
        python, (name, words, kind, *more) = self._before
        random.setstate(python)
        np.random.set_state(cast(Any, (name, np.frombuffer(words, kind), *more)))
