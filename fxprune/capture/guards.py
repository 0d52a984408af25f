"""Random numbers that a forward draws outside torch: a graph would hold those of the trace for ever."""

from __future__ import annotations

import operator
import random
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import fx

from fxprune.capture import sources
from fxprune.errors import CaptureError
from fxprune.rules.ops import canonical_name


class OtherChance:
    """The states of numpy's and Python's generators as they were."""

    def __init__(self) -> None:
        self._python = random.getstate()
        self._numpy: Any = np.random.get_state()

    def refuse_draws(self) -> None:
        """Raise CaptureError if numbers were drawn since."""
        now: Any = np.random.get_state()
        if random.getstate() != self._python or not all(map(np.array_equal, now, self._numpy)):
            raise CaptureError(
                "the forward draws random numbers with numpy or Python's random module, which a graph would repeat at "
                "every call: draw them with torch"
            )

    def restore(self) -> None:
        """Put the states back."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)


_FINITE = {"isfinite": True, "isinf": False, "isnan": False, "isneginf": False, "isposinf": False}
_PASSING = {"all", "any", "bool", "detach", "sum", "max", "min", "amax", "amin"}
_JOINING = {"logical_or": operator.or_, "bitwise_or": operator.or_, "add": operator.or_}
_JOINING |= {"logical_and": operator.and_, "bitwise_and": operator.and_, "mul": operator.and_}


def answer_if_finite(node: fx.Node) -> bool | None:
    """The truth value of a node's tensor where all values are finite; None where that does not decide it."""
    if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
        return None
    name = canonical_name(node.target)
    if name in _FINITE:
        return _FINITE[name]
    answers = [answer_if_finite(given) for given in node.all_input_nodes]
    known = [answer for answer in answers if answer is not None]
    if len(known) < len(answers):
        return None
    if name in _PASSING and len(known) == 1:
        return known[0]
    if name in ("logical_not", "bitwise_not") and len(known) == 1:
        return not known[0]
    return _JOINING[name](*known) if name in _JOINING and len(known) == 2 else None


# In the order in which they are answered: the one that changes least comes first.
GUARDS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "is_compiling": (torch.compiler, ("is_compiling", "is_dynamo_compiling")),
    "is_tracing": (torch.jit, ("is_tracing",)),
    "is_exporting": (torch.compiler, ("is_exporting",)),
}


@contextmanager
def answering(answered: Collection[str], namespaces: Iterable[dict[str, Any]]) -> Iterator[set[str]]:
    """Answer yes to the guards in ``answered``; gives the set of all guards that are asked meanwhile.

    ``namespaces``: the globals of the model's own code, which may have imported a guard by its name.
    """
    asked: set[str] = set()
    variants: dict[int, Callable[[], bool]] = {}
    places: list[tuple[dict[str, Any], str, Any]] = []
    for guard, (module, names) in GUARDS.items():
        for name in names:
            original = getattr(module, name)
            variants[id(original)] = _variant(original, guard, guard in answered, asked)
            places.append((vars(module), name, original))
    for namespace in namespaces:
        places.extend((namespace, name, value) for name, value in list(namespace.items()) if id(value) in variants)
    try:
        for namespace, name, original in places:
            namespace[name] = variants[id(original)]
        yield asked
    finally:
        for namespace, name, original in places:
            namespace[name] = original


def _variant(original: Callable[[], bool], guard: str, answer: bool, asked: set[str]) -> Callable[[], bool]:
    thread = threading.get_ident()

    def variant() -> bool:
        if threading.get_ident() != thread or sources.is_hidden(sys._getframe(1)):
            return original()
        asked.add(guard)
        return answer or original()

    return variant


def next_guard(asked: Collection[str], answered: Collection[str]) -> str | None:
    """The next one to answer yes to: one that was asked and got no for an answer."""
    return next((guard for guard in GUARDS if guard in asked and guard not in answered), None)
