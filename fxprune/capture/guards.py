"""The questions "is this being traced?" that a forward asks in order not to look at values while it is.

A model that skips work where its data allow it (a mask of ones, say) often asks ``torch.compiler.is_compiling()`` first
and takes a path that works for every value if so. Where a capture fails, it is tried again with those questions
answered as tracing does; the proof then compares that path with the one that the original takes. The answers are for
the capturing thread and for code outside torch alone.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fxprune.capture import sources

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
