"""The Python code that a model's forward may run, and what it shares with the rest of the process.

Found by name: from the methods of the model's classes to the functions, classes and objects that their code names, in
closures too. Methods count as soon as any of that code uses their name. Torch, numpy, sympy and Python's own library
are left out.
"""

from __future__ import annotations

import contextlib
import contextvars
import dis
import functools
import operator
import random
import sys
import threading
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn

from fxprune.capture.objects import held_leaves, write_back
from fxprune.util.paths import modules_of

# Sympy computes with symbols, for torch's compiler, and has as much code as the rest together.
_LEFT_OUT = frozenset({*sys.stdlib_module_names, "torch", "numpy", "sympy", "mpmath", __name__.partition(".")[0]})
_CONTAINERS = (dict, list, set, deque)
# Tables of more entries are registries, of which a forward uses few.
_MOST_ENTRIES = 64
# What is taken from these moves them on; and what is written into arrays changes these.
STREAMS = (random.Random, np.random.Generator, np.random.RandomState, Iterator, contextvars.ContextVar)
_BUFFERS = (bytearray, np.ndarray)
_WITHOUT_CALLABLES = (torch.Size, np.ndarray, types.ModuleType, nn.Module)
_DEPTH = 4
_Cache: Any = type(functools.lru_cache(lambda: None))
_STORE_GLOBAL = dis.opmap["STORE_GLOBAL"]
_MISSING: Any = object()
# Innermost last: what models reach whose passes run, and what was held there before.
_current: list[tuple[Reachable, _Contents]] = []


class Reachable:
    """What one model's code reaches.

    Attributes:
        functions: functions written in Python.
        caches: functions with an ``lru_cache``.
        containers: dicts, lists, sets and deques in globals, closures, defaults and attributes.
        classes: classes from outside torch.
        cells: variables of enclosing functions.
        namespaces: the globals of the functions, by their id.
        modules: the model's modules, by their id.
        names: those of globals and attributes that the code uses.
        held: names of functions and classes that it may call under other names: those held in variables, containers
            and attributes.
        written: other tensors to which a forward was seen to write, each with its values before that.
    """

    def __init__(self, model: nn.Module) -> None:
        self.functions: list[types.FunctionType] = []
        self.caches: list[Any] = []
        self.containers: list[Any] = []
        self.classes: list[type] = []
        self.cells: list[types.CellType] = []
        self.namespaces: dict[int, dict[str, Any]] = {}
        parts = modules_of(model)
        for module in parts:
            getattr(type(module), "forward", None)  # which a pruned network generates when it is first looked up
        self.modules = {id(module): module for module in parts}
        self._seen: dict[int, Any] = {}
        self.names: set[str] = {"forward"}
        self.held: set[str] = set()
        self.written: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._waiting: defaultdict[str, list[Any]] = defaultdict(list)
        self._pending: list[Any] = [type(module) for module in parts]
        # What the model itself holds is copied before anything runs; functions and classes are not.
        for module in parts:
            held = [v for n, v in vars(module).items() if not n.startswith("_") and not _is_data(v)]
            self._pending += [v if callable(v) else type(v) for v in held]
            self._pending += chain.from_iterable(map(_callables_in, held))
            self._pending += [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        while self._pending:
            self._visit(self._pending.pop())

    @functools.cached_property
    def holders(self) -> list[tuple[str, Any]]:
        """All objects that hold values, each with a description."""
        tables = [c for c in self.containers if len(c) <= _MOST_ENTRIES]
        return [
            *((in_words(cls), cls) for cls in self.classes),
            *((f"globals of {namespace.get('__name__')}", namespace) for namespace in self.namespaces.values()),
            *((f"variable {number} of a function around it", cell) for number, cell in enumerate(self.cells)),
            *((f"container {number} that it shares", table) for number, table in enumerate(tables)),
        ]

    @functools.cached_property
    def changeable(self) -> list[tuple[str, Any]]:
        """The holders whose contents may change while the objects in them stay the same."""
        return [(words, holder) for words, holder in self.holders if any(is_changeable(type(v)) for v in _held(holder))]

    def _visit(self, value: Any) -> None:
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, type)):
            self.held.add(value.__name__)
        if isinstance(value, types.FunctionType):
            self._visit_function(value)
        elif isinstance(value, _Cache):
            self.caches.append(value)
            self._pending += [value.__wrapped__, vars(value)]
        elif isinstance(value, type):
            self._visit_class(value)
        elif isinstance(value, _CONTAINERS):
            self.containers.append(value)
            items = _held(value)
            self._pending += [v for v in items if not _is_data(v)] if len(items) <= _MOST_ENTRIES else []
        else:
            self._visit_object(value)

    def _visit_function(self, function: types.FunctionType) -> None:
        namespace = function.__globals__
        if is_left_out(namespace.get("__name__")):  # a decorator's function may stand for one that is not
            self._pending += [vars(function)["__wrapped__"]] if "__wrapped__" in vars(function) else []
            return
        self.functions.append(function)
        self.namespaces[id(namespace)] = namespace
        self._pending += [function.__defaults__ or (), function.__kwdefaults__ or {}, vars(function)]
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):  # not filled yet
                self._pending.append(cell.cell_contents)
                self.cells.append(cell)
        names = names_in(function.__code__)
        for name in names:
            found = namespace.get(name)
            self._pending += [] if found is None or _is_data(found) else [found]
            if isinstance(found, types.ModuleType) and not is_left_out(found.__name__):
                self._pending += [vars(found)[n] for n in names if n in vars(found)]
        for name in names - self.names:
            self._pending += self._waiting.pop(name, ())
        self.names |= names

    def _visit_class(self, cls: type) -> None:
        for base in cls.__mro__:
            if is_left_out(base.__module__) or base in self.classes:
                continue
            self.classes.append(base)
            for name, member in list(vars(base).items()):
                used = name in self.names or (name.startswith("__") and name not in ("__init__", "__dict__"))
                (self._pending if used else self._waiting[name]).append(member)

    def _visit_object(self, value: Any) -> None:
        if isinstance(value, tuple):
            self._pending += [v for v in value if not _is_data(v)]
            self.containers += [list(value)] if any(is_changeable(type(v)) for v in value) else []
        elif isinstance(value, (staticmethod, classmethod, types.MethodType)):
            self._pending += [value.__func__, getattr(value, "__self__", None)]
        elif isinstance(value, types.MethodWrapperType):
            self._pending.append(value.__self__)
        elif isinstance(value, property):
            self._pending += [value.fget, value.fset]
        elif isinstance(value, functools.partial):
            self._pending += [value.func, value.args, value.keywords]
        elif isinstance(value, functools.cached_property):
            self._pending.append(value.func)
        elif isinstance(value, torch.jit.ScriptFunction):
            self._pending.append(python_of(value))
        elif not isinstance(value, types.ModuleType):
            self._visit_instance(value)

    def _visit_instance(self, value: Any) -> None:
        root = str(type(value).__module__).partition(".")[0]
        if root not in _LEFT_OUT:
            self._pending.append(type(value))
        try:
            held = _own_getter(type(value))(value, "__dict__")
        except AttributeError:
            return
        if (
            isinstance(held, dict)
            and not isinstance(value, nn.Module)
            and root not in _LEFT_OUT - {"_thread", "collections", "types", "weakref"}
            and not _runs_by_itself(value)
        ):
            self._pending.append(held)


def _runs_by_itself(value: Any) -> bool:
    """Whether it is a thread that runs beside the forward, and changes what it holds whenever it likes."""
    return isinstance(value, threading.Thread) and threading.Thread.is_alive(value)


def _callables_in(value: Any, depth: int = _DEPTH) -> Iterator[Any]:
    """What can be called in an object that a model holds; a copy of the object has the same."""
    if callable(value):
        yield value
    elif depth and not isinstance(value, _WITHOUT_CALLABLES):
        items = _held(value) if isinstance(value, _CONTAINERS) else value if isinstance(value, tuple) else ()
        for part in (*items, *getattr(value, "__dict__", {}).values()) if len(items) <= _MOST_ENTRIES else ():
            if not _is_data(part):
                yield from _callables_in(part, depth - 1)


def in_words(cls: type) -> str:
    """The name of a class; a watched stand-in has the name of the original."""
    return f"class {cls.__module__}.{cls.__qualname__}"


def _changes_inside(cls: Any) -> bool:
    return issubclass(cls, (*STREAMS, *_BUFFERS))


# Whether an instance of a class is an iterator, a generator of random numbers or an array.
is_changeable: Callable[[Any], bool] = functools.lru_cache(maxsize=8192)(_changes_inside)


def _held(holder: Any) -> list[Any]:
    if isinstance(holder, types.CellType):
        return [holder.cell_contents]
    if isinstance(holder, type):
        return list(vars(holder).values())
    if isinstance(holder, dict):
        return list(dict.values(holder))  # not by its own method, which may import a library to answer
    return list(_plain_kind(holder).__iter__(holder))


def _own_getter(cls: type) -> Any:
    """How to read attributes without running the class's own Python code, which may raise anything."""
    ways = (vars(base).get("__getattribute__") for base in cls.__mro__)
    return next(way for way in ways if isinstance(way, types.WrapperDescriptorType))


def is_left_out(module: Any) -> bool:
    """Whether a module of that name is none of the user's code."""
    return _is_left_out(str(module))


@functools.lru_cache(maxsize=4096)
def _is_left_out(name: str) -> bool:
    return name.partition(".")[0] in _LEFT_OUT


def _is_data(value: Any) -> bool:
    return isinstance(value, (str, int, float, bytes, type(None), torch.Tensor, torch.dtype, torch.device))


@functools.lru_cache(maxsize=65536)
def names_in(code: types.CodeType) -> frozenset[str]:
    """The names of globals and attributes that code uses, inner functions included."""
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return frozenset(code.co_names).union(*map(names_in, inner))


def python_of(script: Any) -> types.FunctionType | None:
    """What a TorchScript function was compiled from; None if it was traced, or asks whether it is a script."""
    function = getattr(script, "_torchdynamo_inline", None)
    if not isinstance(function, types.FunctionType) or "is_scripting" in names_in(function.__code__):
        return None
    state: Any = torch.jit._state
    compiled = state._try_get_jit_cached_function(function)
    return function if getattr(compiled, "qualified_name", "") == script.qualified_name else None


def reachable(model: nn.Module) -> Reachable:
    """What a model's code reaches; within :func:`restored` that of the whole model, which is found once."""
    known = (found for found, _ in reversed(_current) if id(model) in found.modules)
    return next(known, None) or Reachable(model)


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Remove the tensors and sizes that the code run inside leaves in objects shared with the rest of the process.

    Entries of containers, attributes of classes and variables that got such values get their earlier ones back;
    functions with an ``lru_cache`` that were called are emptied.
    """
    before = next((contents for found, contents in reversed(_current) if id(model) in found.modules), None)
    found = reachable(model)
    before = before or _Contents(found)
    _current.append((found, before))
    try:
        yield
    finally:
        _current.pop()
        before.restore()


def forget() -> None:
    """Within :func:`restored`: undo now what runs have left, so that the next one starts like the first."""
    for _, contents in _current[-1:]:
        contents.restore()


class _Contents:
    """What was held where."""

    def __init__(self, found: Reachable) -> None:
        self._caches = [(cache, cache.cache_info()) for cache in found.caches]
        self._containers = [(c, c.copy() if type(c) in _CONTAINERS else _copied(c)) for c in found.containers]
        self._classes = [(cls, dict(vars(cls))) for cls in found.classes]
        self._cells = [(cell, cell.cell_contents) for cell in found.cells]
        self._globals = [
            (function.__globals__, {name: function.__globals__.get(name, _MISSING) for name in names})
            for function in found.functions
            if (names := _global_names(function.__code__))
        ]
        self._written = found.written

    def restore(self) -> None:
        """Restore values that were replaced by tensors or sizes, and those of written tensors."""
        write_back(self._written)
        for cache, info in self._caches:
            if cache.cache_info().misses != info.misses:
                cache.cache_clear()
        for container, contents in self._containers:
            _restore(container, contents)
        for cls, attributes in self._classes:
            for name, value in _differences(vars(cls), attributes):
                delattr(cls, name) if value is _MISSING else setattr(cls, name, value)
        for cell, value in self._cells:
            if cell.cell_contents is not value and _matters(cell.cell_contents, value):
                cell.cell_contents = value
        for namespace, values in self._globals:
            for name, value in _differences({name: namespace.get(name, _MISSING) for name in values}, values):
                namespace.pop(name, None) if value is _MISSING else namespace.__setitem__(name, value)


def _differences(now: Mapping[Any, Any], before: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """Keys whose old or new values are tensors or sizes, with the old values."""
    if len(now) == len(before) and all(map(operator.is_, chain(now, now.values()), chain(before, before.values()))):
        return []
    changed = [(key, before.get(key, _MISSING), value) for key, value in now.items()]
    changed = [(key, old, value) for key, old, value in changed if old is not value]
    changed += [(key, old, None) for key, old in before.items() if key not in now] if len(now) < len(before) else []
    return [(key, old) for key, old, value in changed if _matters(key, old, value)]


def _matters(*values: Any) -> bool:
    """Whether values hold tensors or sizes."""
    return any(True for value in values for _ in held_leaves(value, 6))


def _plain_kind(container: Any) -> Any:
    return next(k for k in _CONTAINERS if isinstance(container, k))


def _copied(container: Any) -> Any:
    kind = _plain_kind(container)
    return kind(dict.items(container)) if kind is dict else kind(kind.__iter__(container))


def _restore(container: Any, contents: Any) -> None:
    if isinstance(container, OrderedDict):
        if _differences(dict(dict.items(container)), contents):
            added = [(k, v) for k, v in dict.items(container) if k not in contents and not _matters(k, v)]
            OrderedDict.clear(container)
            OrderedDict.update(container, {**contents, **dict(added)})
    elif isinstance(container, dict):
        for key, value in _differences(container, contents):
            dict.pop(container, key, None) if value is _MISSING else dict.__setitem__(container, key, value)
    elif isinstance(container, set):
        set.difference_update(container, [item for item in container if item not in contents and _matters(item)])
    else:
        added, lost = _without(container, contents), _without(contents, container)
        if _matters(added, lost):
            base: Any = deque if isinstance(container, deque) else list
            base.clear(container)
            base.extend(container, [*contents, *(item for item in added if not _matters(item))])


def _without(items: Any, others: Any) -> list[Any]:
    known = {id(item) for item in others}
    return [item for item in items if id(item) not in known]


@functools.lru_cache(maxsize=65536)
def _global_names(code: types.CodeType) -> frozenset[str]:
    """The globals that code assigns to."""
    stored: set[str] = set()
    if _STORE_GLOBAL in code.co_code[::2]:
        stored = {i.argval for i in dis.get_instructions(code) if i.opcode == _STORE_GLOBAL}
    return frozenset(stored).union(*(_global_names(c) for c in code.co_consts if isinstance(c, types.CodeType)))
