"""Each op of the corpus means the same in other words: places and names of arguments, defaults, signs, in place."""

from __future__ import annotations

import inspect
import re
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import takewhile
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxprune.analysis.solving import analyze_capture
from fxprune.capture.capturing import Captured, capture
from fxprune.capture.samples import Sample
from fxprune.capture.tracing import attempt
from fxprune.errors import CaptureError
from fxprune.rules import rule_names
from fxprune.rules.ops import canonical_name, drop_unread
from tests.rules.cases import Case
from tests.rules.corpus import CASES
from tests.rules.prepared import BATCHES, built, sampled

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
# Other names that torch's own parser takes.
NUMPY = {"dim": ("axis",), "keepdim": ("keepdims",), "input": ("x", "a", "x1", "input"), "other": ("x2", "other")}
WAYS = ("keywords", "positions", "signs", "in place", "1 first", "2 first", "3 first", "defaults", "all first")
# Those of which it is not plain that they ask for the same.
COMPARED = ("signs", "in place", "defaults", "all first")
# What arguments are called that name dims, which may be counted from the end.
DIMS = {"dim", "dims", "dim0", "dim1", "dim2", "axis", "start_dim", "end_dim", "source", "destination"}
Words = tuple[Any, Arguments]


@cache
def overloads(func: Any) -> tuple[tuple[str, ...], ...]:
    """Names of the arguments that have a position, for each way to call a function."""
    if isinstance(func, types.FunctionType):
        taken = inspect.signature(func, follow_wrapped=False).parameters.values()
        named = all(p.kind is p.POSITIONAL_OR_KEYWORD for p in taken)
        return (tuple(p.name for p in taken),) if named else ()
    schemas = torch._C._jit_get_schemas_for_operator(f"aten::{func.__name__}")
    return tuple(
        tuple("input" if a.name == "self" else a.name for a in schema.arguments if not a.kwarg_only)
        for schema in schemas
    )


@cache
def defaults(func: Any) -> tuple[dict[str, Any], ...]:
    """What each overload takes for arguments that are not given."""
    if isinstance(func, types.FunctionType):
        taken = inspect.signature(func, follow_wrapped=False).parameters.values()
        return ({p.name: p.default for p in taken if p.default is not p.empty},)
    schemas = torch._C._jit_get_schemas_for_operator(f"aten::{func.__name__}")
    return tuple({a.name: a.default_value for a in s.arguments if a.has_default_value()} for s in schemas)


def worded(func: Any, way: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Words]:
    """A call in another way, for each overload whose names fit."""
    if way == "in place":
        yield from in_place(func, args, kwargs)
        return
    first = 0 if isinstance(func, (types.FunctionType, types.BuiltinFunctionType)) else 1
    for names, left_out in zip(overloads(func), defaults(func), strict=False):
        given = (*args[: len(names) - 1], args[len(names) - 1 :]) if len(args) > len(names) > first else args
        by_name = dict(zip(names, given, strict=False))
        if len(given) > len(names) or by_name.keys() & kwargs.keys():
            continue
        if way == "signs":
            inner = func.__name__.startswith("_")  # torch does not check what only its own code calls
            yield from ((func, words) for words in (() if inner else counted(names, by_name, kwargs)))
            continue
        by_name |= kwargs
        if way in ("defaults", "all first"):
            by_name |= {name: value for name, value in left_out.items() if name not in by_name}
        most = int(way[0]) if way[0].isdigit() else {"keywords": first, "defaults": len(args)}.get(way, len(names))
        front = [by_name.pop(name) for name in takewhile(by_name.__contains__, names[:most])]
        if (tuple(front), by_name) != (args, kwargs):
            yield from ((func, (tuple(front), named)) for named in renamed(by_name, way))


def counted(names: tuple[str, ...], by_name: dict[str, Any], kwargs: dict[str, Any]) -> Iterator[Arguments]:
    """Dims counted from the other end, of the first tensor or of a result of one dim more."""
    tensors = [leaf for leaf in pytree.tree_leaves(list(by_name.values())) if isinstance(leaf, torch.Tensor)]
    for rank in (tensors[0].dim(), tensors[0].dim() + 1) if tensors else ():

        def other(name: str, value: Any, rank: int = rank) -> Any:
            if isinstance(value, (tuple, list)):
                return type(value)(other(name, v) for v in value) if type(value) in (tuple, list) else value
            return value - rank if value >= 0 else value + rank

        def is_dim(name: str, value: Any) -> bool:
            leaves = value if isinstance(value, (tuple, list)) else (value,)
            return name in DIMS and all(type(v) is int for v in leaves)

        changed = {n: other(n, v) if is_dim(n, v) else v for n, v in (by_name | kwargs).items()}
        if changed != by_name | kwargs:
            front = tuple(changed[name] for name in names if name in by_name)
            yield front, {name: changed[name] for name in kwargs}


def in_place(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Words]:
    """The call that writes its result over its first argument, of which there is a copy."""
    written = getattr(torch.Tensor, f"{func.__name__}_", None)
    if written is not None and args and isinstance(args[0], torch.Tensor):
        yield written, ((args[0].clone(), *args[1:]), kwargs)


def renamed(by_name: dict[str, Any], way: str) -> Iterator[dict[str, Any]]:
    """Keywords under one of numpy's names each, where torch may take that, and as they are."""
    if way == "keywords":
        other = {n: NUMPY[n][len(by_name) % len(NUMPY[n])] for n in by_name if n in NUMPY}
        yield {other.get(name, name): value for name, value in by_name.items()}
    yield by_name


def key(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with torch._C.DisableTorchFunction():  # nobody asks for these shapes
        shapes = [tuple(leaf.shape) for leaf in pytree.tree_leaves(args) if isinstance(leaf, torch.Tensor)]
    return func, tuple(map(type, args)), tuple(kwargs), tuple(shapes)


class Learning(TorchFunctionMode):
    """Notes how else torch takes each call: the number of an overload, for a call and a way."""

    def __init__(self, taken: dict[Any, int]) -> None:
        super().__init__()
        self.taken = taken
        self.met: set[Any] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "__")
        for way in WAYS if not name.startswith("__") else ():
            call = key(func, args, kwargs), way
            number = self.taken[call] if call in self.taken else self._number(func, way, args, kwargs)
            if number is not None:
                self.met.add((func, way))
                self.taken[call] = number
        return func(*args, **kwargs)

    def _number(self, func: Any, way: str, args: Any, kwargs: Any) -> int | None:
        calls = enumerate(worded(func, way, args, kwargs))
        expected = self._result(func, (args, kwargs)) if way in COMPARED else None
        if way == "in place" and args and getattr(expected, "shape", ()) != getattr(args[0], "shape", None):
            return None  # some kernels resize what they write to
        return next((number for number, call in calls if self._fits(self._result(*call), expected)), None)

    @staticmethod
    def _result(func: Any, given: Arguments) -> Any:
        front, by_name = pytree.tree_map_only(torch.Tensor, torch.clone, given)
        with torch.random.fork_rng():
            torch.manual_seed(0)  # random numbers may be compared
            try:
                return func(*front, **by_name)
            except (TypeError, RuntimeError, IndexError):
                return ...

    @staticmethod
    def _fits(result: Any, expected: Any) -> bool:
        """Whether a call passed, and gave what is expected, if anything is."""
        if result is ... or expected is None:
            return result is not ...
        pairs = zip(pytree.tree_leaves(result), pytree.tree_leaves(expected), strict=False)
        tensors = [pair for pair in pairs if all(isinstance(leaf, torch.Tensor) for leaf in pair)]
        known = tensors and not any(r.is_meta or e.is_meta for r, e in tensors)
        return bool(known) and all(r.dtype == e.dtype and torch.equal(r, e) for r, e in tensors)


class Wording(TorchFunctionMode):
    """Gives the arguments of each call in another way, where torch takes it."""

    def __init__(self, taken: dict[Any, int], way: str) -> None:
        super().__init__()
        self.taken, self.way = taken, way

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        number = self.taken.get((key(func, args, kwargs), self.way))
        if number is not None:
            func, (args, kwargs) = list(worded(func, self.way, args, kwargs))[number]
        return func(*args, **kwargs)


@contextmanager
def filled_memory() -> Iterator[None]:
    """New memory holds NaN, which equals nothing: else what is chosen would depend on what it held before."""
    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not have a deterministic implementation")
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)


def chosen() -> tuple[dict[Any, int], list[tuple[Case, list[str]]]]:
    """How torch takes each call, and cases and ways that together have each of them once."""
    taken: dict[Any, int] = {}
    cases, seen = [], set()
    for case in CASES:
        net, learning = built(case), Learning(taken)
        with torch.no_grad(), filled_memory(), learning:
            net(*sampled(case, BATCHES[0]))
        if ways := [way for way in WAYS if any(w == way for _, w in learning.met - seen)]:
            cases.append((case, ways))
        seen |= learning.met
    return taken, cases


TAKEN, WORDED = chosen()


def solved(net: nn.Module, like: Captured) -> list[str]:
    """What an analysis finds, as text in which variables are numbered."""
    graph, failure = attempt(net, like)
    assert failure is None
    drop_unread(graph)
    found = analyze_capture(replace(like, graph=graph), net, None)
    numbers: dict[str, str] = {}
    axes = [f"{name}: {axes}" for name, axes in sorted(found.tensors.items())]
    numbered = [
        re.sub(r"[a-z]\w*(?=:\d)", lambda found: numbers.setdefault(found[0], f"v{len(numbers)}"), line)
        for line in axes
    ]
    return [*(op.reason for op in found.opaque), *numbered, *(f"{p.tensor} {p.dim}" for p in found.pinned)]


@pytest.mark.parametrize(("case", "ways"), WORDED, ids=[case.name for case, _ in WORDED])
def test_a_call_means_the_same_in_other_words(case: Case, ways: list[str]) -> None:
    net, sample = built(case), Sample(sampled(case, BATCHES[0]), {})
    plain = type(net).forward
    try:
        like = capture(net, sample)
    except CaptureError:  # torch tells no shape without values
        like = capture(net, sample, live=True)
    expected = solved(net, like)
    for way in ways:
        wording = Wording(TAKEN, way)

        def forward(self: Any, *args: Any, wording: Wording = wording, **kwargs: Any) -> Any:
            with wording:
                return plain(self, *args, **kwargs)

        net.__class__ = type("Worded", (type(net),), {"forward": forward})
        assert solved(net, like) == expected


def test_most_rules_are_called_in_other_words() -> None:
    for way, least in (("keywords", 420), ("1 first", 200), ("defaults", 100), ("all first", 80)):
        reached = {canonical_name(call[0]) for call, known in TAKEN if known == way}
        assert len(reached.intersection(rule_names())) > least
