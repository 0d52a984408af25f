"""Copies of modules, as ``copy.deepcopy`` makes them, but several times faster for ordinary modules.

Most attributes of a module are literals, empty tables of hooks, and tables of tensors or submodules. This module copies
those itself. It leaves everything else, and every class that defines its own way of copying, to ``copy.deepcopy``.
"""

from __future__ import annotations

import copy
import functools
import io
import sys
import threading
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch._library.custom_ops import CustomOpDef

from fxprune.util.paths import attribute, hold, is_held, modules_of, named_modules

Memo = dict[int, Any]
# The names of each part or tensor that has several.
Shared = Sequence[Sequence[str]]

_DICTS = frozenset((dict, OrderedDict))
LITERALS = frozenset({type(None), bool, int, float, str, torch.dtype, torch.device, CustomOpDef, types.ModuleType})
# Python cannot copy these, and no forward computes with them: a copy gets new ones, free of threads, or a closed file.
_OF_THREADS: dict[type, Callable[[Any], Any]] = {
    type(threading.Lock()): lambda _: threading.Lock(),
    type(threading.RLock()): lambda _: threading.RLock(),
    threading.Condition: lambda _: threading.Condition(),
    threading.Semaphore: lambda value: threading.Semaphore(value._value),
    threading.BoundedSemaphore: lambda value: threading.BoundedSemaphore(value._initial_value),
    threading.Event: lambda value: _event(value.is_set()),
}
_HOOKS_OF_COPYING = ("__deepcopy__", "__getnewargs__", "__getnewargs_ex__")


def shared_names(model: nn.Module) -> Shared:
    """The names of every part, parameter and saved buffer that a model holds under several names, parts first."""
    parts: dict[int, list[str]] = {}
    tensors: dict[int, list[str]] = {}
    for path, module in named_modules(model, again=True):
        parts.setdefault(id(module), []).append(path)
        saved = {n: t for n, t in module._buffers.items() if n not in module._non_persistent_buffers_set}
        for name, tensor in {**module._parameters, **saved}.items():
            if tensor is not None:
                tensors.setdefault(id(tensor), []).append(f"{path}.{name}".lstrip("."))
    return [names for names in (*parts.values(), *tensors.values()) if len(names) > 1]


def hold_under_all(model: nn.Module, shared: Shared) -> None:
    """Let a model hold what it has under one of several names under the others, too; tensors only in parts it has."""
    for names in shared:
        found = next((attribute(model, name) for name in names if is_held(model, name)), None)
        for name in names if found is not None else ():
            parent = name.rpartition(".")[0]
            if not is_held(model, name) and (isinstance(found, nn.Module) or not parent or is_held(model, parent)):
                hold(model, name, found)


def copy_module(module: nn.Module, memo: Memo) -> nn.Module:
    """A copy of a module and all its submodules; ``memo`` maps the ids of originals to their copies."""
    if id(module) in memo:
        return cast(nn.Module, memo[id(module)])
    cls: Any = type(module)
    if not _is_ordinary(cls):
        if isinstance(module, fx.GraphModule):
            # GraphModule.__deepcopy__ takes each submodule from the memo.
            for child in module.children():
                copy_module(child, memo)
        return copy.deepcopy(module, memo)
    twin: Any = cls.__new__(cls)
    memo[id(module)] = twin
    state = cls.__getstate__(module) if hasattr(cls, "__getstate__") else vars(module)
    twin.__setstate__(copied_attributes(state, memo))
    if "training" in vars(module):
        vars(twin)["training"] = module.training  # a class whose state is its arguments is built anew
    return cast(nn.Module, twin)


def copied_attributes(attributes: Mapping[str, Any], memo: Memo) -> dict[str, Any]:
    """Copies of a module's attributes, by name."""
    made = dict(attributes)
    later = []
    for name, value in attributes.items():
        if (kind := type(value)) in LITERALS:
            continue
        if kind in _DICTS and not value and name.startswith("_"):
            made[name] = kind()
        elif kind is tuple and LITERALS.issuperset(map(type, value)):
            continue
        elif name == "_non_persistent_buffers_set" and not value:
            made[name] = set()
        elif name == "_modules" or name.endswith("_hooks"):
            later.append(name)  # functions in them may hold containers of the module
        else:
            made[name] = _copied(value, memo)
    for name in later:
        made[name] = _copied(attributes[name], memo)
    return made


def attributes_of(module: nn.Module) -> dict[str, Any]:
    """A module's own attributes, without compiled code (``module.compile()``): in a copy it would run the original."""
    return {name: value for name, value in vars(module).items() if name != "_compiled_call_impl"}


@contextmanager
def deep_recursion(module: nn.Module) -> Iterator[None]:
    """Raise the recursion limit to what copies and traces of deeply nested modules need."""
    before = sys.getrecursionlimit()
    deepest = max(path.count(".") for path, _ in named_modules(module, again=True))
    sys.setrecursionlimit(max(before, 40 * deepest))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


@functools.cache
def _is_ordinary(cls: Any) -> bool:
    """Whether copying an instance means copying its attributes."""
    says_how = any(getattr(cls, name, None) is not getattr(object, name, None) for name in _HOOKS_OF_COPYING)
    reduces = cls.__reduce_ex__ is not object.__reduce_ex__ or cls.__reduce__ is not object.__reduce__
    slots = any(vars(base).get("__slots__") for base in cls.__mro__)
    return not (says_how or reduces or slots or cls.__new__ is not object.__new__)


def _has_a_state(cls: Any) -> bool:
    """Whether a class says what of an instance is copied (from Python 3.11 on, ``object`` has a default)."""
    default = getattr(object, "__getstate__", None)
    return hasattr(cls, "__setstate__") or getattr(cls, "__getstate__", default) is not default


def _copied(value: Any, memo: Memo) -> Any:
    kind = type(value)
    if kind in LITERALS:
        return value
    if kind is tuple and LITERALS.issuperset(map(type, value)):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind in _DICTS:
        return _copied_dict(value, memo)
    if isinstance(value, nn.Module):
        return copy_module(value, memo)
    if kind in _OF_THREADS or isinstance(value, io.IOBase):
        make: Callable[[Any], Any] = _OF_THREADS.get(kind, _closed)
        return memo.setdefault(id(value), make(value))
    return _copied_function(value, memo) if kind is types.FunctionType else _copied_object(value, memo)


def _copied_object(value: Any, memo: Memo) -> Any:
    kind: Any = type(value)
    if kind is list:
        twin: list[Any] = []
        memo[id(value)] = twin
        twin.extend(_copied(item, memo) for item in value)
        return twin
    if kind is set and LITERALS.issuperset(map(type, value)):
        memo[id(value)] = set(value)
        return memo[id(value)]
    if kind is tuple:
        return memo.setdefault(id(value), tuple(_copied(item, memo) for item in value))
    if hasattr(value, "__dict__") and _is_ordinary(kind) and not _has_a_state(kind):
        other: Any = object.__new__(kind)
        memo[id(value)] = other
        vars(other).update({name: _copied(held, memo) for name, held in vars(value).items()})
        return other
    return copy.deepcopy(value, memo)


def _copied_function(function: types.FunctionType, memo: Memo) -> types.FunctionType:
    """The function, over copies of the parts of the model that it holds (``lambda x, f=self.act: self.a(f(x))``)."""
    memo[id(function)] = function  # for one that calls itself
    cells, defaults, named = function.__closure__ or (), function.__defaults__ or (), function.__kwdefaults__ or {}
    twins = [_copied_cell(cell, memo) for cell in cells]
    given = [_copied_part(value, memo) for value in defaults]
    by_name = {name: _copied_part(value, memo) for name, value in named.items()}
    pairs = zip((*twins, *given, *by_name.values()), (*cells, *defaults, *named.values()), strict=True)
    if any(twin is not own for twin, own in pairs):
        made = (function.__code__, function.__globals__, function.__name__, tuple(given), tuple(twins))
        twin = memo[id(function)] = types.FunctionType(*made)
        twin.__kwdefaults__, twin.__qualname__ = by_name, function.__qualname__
        vars(twin).update(vars(function))
    return cast(types.FunctionType, memo[id(function)])


def _copied_cell(cell: types.CellType, memo: Memo) -> types.CellType:
    try:
        held = cell.cell_contents
    except ValueError:  # it is empty
        return cell
    twin = _copied_part(held, memo)
    return cell if twin is held else types.CellType(twin)


def _copied_part(held: Any, memo: Memo) -> Any:
    """The copy of a part of the model; what is none stays."""
    parts = held.parameters() if isinstance(held, nn.Module) else ()
    ours = id(held) in memo or type(held) is types.FunctionType or any(id(part) in memo for part in parts)
    return _copied(held, memo) if ours else held


def _event(is_set: bool) -> threading.Event:
    event = threading.Event()
    if is_set:
        event.set()
    return event


def _closed(_: Any) -> io.BytesIO:
    file = io.BytesIO()
    file.close()
    return file


def _copied_dict(value: dict[Any, Any], memo: Memo) -> Any:
    if not LITERALS.issuperset(map(type, value)):
        return copy.deepcopy(value, memo)
    twin = memo[id(value)] = type(value)()
    for key, item in value.items():
        twin[key] = _copied(item, memo)
    return twin


# Part of the name of every tensor that a forward creates while it is traced.
MADE_TENSOR = "made_tensor"
# The same for tensors that the model holds outside of its state dict.
HELD_TENSOR = "held_tensor"


def is_constant(name: str) -> bool:
    """Whether a tensor of a traced network is one of these two; converting the original (``.half()``) leaves them."""
    return f"_{MADE_TENSOR}" in name or f"_{HELD_TENSOR}" in name


Module = TypeVar("Module", bound=nn.Module)


def deep_copy(module: Module, fresh: Callable[[Tensor], Tensor]) -> Module:
    """A deep copy in which ``fresh(tensor)`` replaces each tensor of the original; tied tensors stay tied.

    This includes tensors in plain attributes that have an autograd history, which Python's deep copy refuses. Raises
    Exception: whatever the user's own code raises while it is copied.
    """
    memo: dict[int, Any] = {}
    for owner in modules_of(module):
        for tensor in tensors_in(vars(owner), depth=4):
            if id(tensor) not in memo:
                memo[id(tensor)] = with_literals_of(tensor, fresh(tensor))
    return cast(Module, copy_module(module, memo))


def with_literals_of(tensor: Tensor, twin: Tensor) -> Tensor:
    """The twin, with the literals that the tensor has as attributes (``weight.gain = 2.0``)."""
    if own := vars(tensor):
        vars(twin).update({name: held for name, held in own.items() if type(held) in LITERALS})
    return twin


def tensors_in(value: Any, depth: int) -> Iterator[Tensor]:
    """Tensors in a value and in the plain containers in it, down to ``depth`` levels; not those of submodules."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, (dict, list, tuple, set)):
        for item in value.values() if isinstance(value, dict) else value:
            if type(item) in LITERALS:
                continue
            if isinstance(item, Tensor):
                yield item
            elif isinstance(item, (dict, list, tuple, set)) and item:
                yield from tensors_in(item, depth - 1)


def private_copy(module: Module) -> Module:
    """A deep copy with its own tensors, without autograd history; they require gradients where the original's do."""
    return deep_copy(module, lambda tensor: cloned(tensor).requires_grad_(tensor.requires_grad))


def cloned(tensor: torch.Tensor) -> torch.Tensor:
    """A copy without autograd history; the copy of a parameter is a parameter."""
    copy = tensor.detach().clone()
    return nn.Parameter(copy, requires_grad=False) if isinstance(tensor, nn.Parameter) else copy


def share_elements(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors share an element in memory."""
    if _last_byte(left) < right.data_ptr() or _last_byte(right) < left.data_ptr():
        return False
    # Contiguous tensors need no search by element: a tied embedding has tens of millions of elements.
    if left.is_contiguous() and right.is_contiguous():
        return True
    return len(np.intersect1d(_bytes_of(left), _bytes_of(right))) > 0


def _last_byte(tensor: torch.Tensor) -> int:
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.data_ptr() + tensor.element_size() * sum((size - 1) * stride for size, stride in steps)


def _bytes_of(tensor: torch.Tensor) -> NDArray[np.int64]:
    """The memory addresses of a tensor's elements."""
    places = np.zeros((), dtype=np.int64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        places = places[..., None] + stride * np.arange(size)
    found: NDArray[np.int64] = tensor.data_ptr() + tensor.element_size() * places
    return found
