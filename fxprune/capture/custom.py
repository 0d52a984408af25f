"""Custom autograd functions, each kept as one call in the graph, with its own backward.

``Function.apply`` is C code that calls the class's ``forward``. While a network is traced, the code of that
function records the call; for other threads, and inside such a call, it is unchanged.
"""

from __future__ import annotations

import inspect
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode

from fxprune.capture.clone import on_meta
from fxprune.capture.lowering import leaves, map_leaves
from fxprune.capture.numbers import Traced
from fxprune.errors import CaptureError

_LITERALS = (Tensor, Traced, int, float, complex, str, type(None), torch.dtype, torch.device)

Record = Callable[["CustomFunction", Callable[..., Any], tuple[Any, ...]], Any]


class CustomFunction:
    """The target of such a call in a graph; targets of one class are equal and shared like any function."""

    def __init__(self, cls: type[Function]) -> None:
        self.cls = cls
        self.__name__ = f"{cls.__name__}.apply"
        self.__qualname__, self.__module__ = f"{cls.__qualname__}.apply", cls.__module__

    def __call__(self, *args: Any) -> Any:
        return self.cls.apply(*args)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CustomFunction) and other.cls is self.cls

    def __hash__(self) -> int:
        return hash(self.cls)

    def __reduce__(self) -> tuple[type[CustomFunction], tuple[type[Function]]]:
        return CustomFunction, (self.cls,)


def runs() -> bool:
    """Whether the forward of a custom function is running: one of torch's own, or made since the trace began."""
    frame: types.FrameType | None = sys._getframe(1)
    without_context = {f.__code__ for f, cls in _functions(Function) if cls.setup_context is not Function.setup_context}
    while frame is not None:
        context = frame.f_locals.get(frame.f_code.co_varnames[0]) if frame.f_code.co_varnames else None
        if isinstance(context, FunctionCtx):
            cls = type(context)._forward_cls  # type: ignore[attr-defined]
            if cls.setup_context is Function.setup_context:
                return True
        elif frame.f_code in without_context:
            return True
        frame = frame.f_back
    return False


def _functions(cls: type[Function], *but: str) -> Iterator[tuple[types.FunctionType, type[Function]]]:
    """The forwards of all classes below this one, ``but`` those of modules whose names begin so."""
    for below in cls.__subclasses__():
        own = not below.__module__.startswith(but)
        if own and isinstance(below.forward, types.FunctionType) and below.forward is not Function.forward:
            yield below.forward, below
        if below.__subclasses__():
            yield from _functions(below, *but)


@contextmanager
def watched(record: Record) -> Iterator[None]:
    """Let ``record(function, run, arguments)`` answer for calls of custom functions; ``run(*arguments)`` computes."""
    known: dict[types.FunctionType, list[type[Function]]] = {}
    for forward, cls in _functions(Function, "torch."):
        known.setdefault(forward, []).append(cls)
    before = {forward: forward.__code__ for forward in known}
    try:
        for forward, code in before.items():
            twin = types.FunctionType(
                code, forward.__globals__, code.co_name, forward.__defaults__, forward.__closure__
            )
            twin.__kwdefaults__ = forward.__kwdefaults__
            vars(forward)["__signature__"] = inspect.signature(twin)
            forward.__code__ = _calling(_handler(known[forward], twin, record), code)
        yield
    finally:
        for forward, code in before.items():
            forward.__code__ = code
            vars(forward).pop("__signature__", None)


class _Inputs(TorchFunctionMode):
    """Refuses tensors of the network (``is_held``) that are not among a function's arguments."""

    def __init__(self, given: set[int], is_held: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self._given, self._is_held = given, is_held

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            args, kwargs = map_leaves(on_meta, (tuple(args), kwargs or {}))
            tensors = (leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor))
            if any(id(leaf) not in self._given and self._is_held(leaf) for leaf in tensors):
                raise CaptureError("a custom autograd function reads a tensor of the network that is no argument of it")
            return func(*args, **kwargs)


def without_values(run: Callable[..., Any], args: tuple[Any, ...], is_held: Callable[[Tensor], bool]) -> Any:
    """The result of ``run(*args)`` on the meta device. Raises CaptureError: a graph could not express it."""
    if odd := next((leaf for leaf in leaves(args) if not isinstance(leaf, _LITERALS)), None):
        raise CaptureError(f"a custom autograd function is given a {type(odd).__name__}, which may hold anything")
    with torch._C.DisableTorchFunction():
        args = map_leaves(on_meta, args)
        given = {id(leaf): (leaf, leaf._version) for leaf in leaves(args) if isinstance(leaf, Tensor)}
    with _Inputs(set(given), is_held):
        value = run(*args)
    with torch._C.DisableTorchFunction():
        if any(tensor._version != version for tensor, version in given.values()):
            raise CaptureError(
                "a custom autograd function writes to its input in place, which no graph would tell: let it return a "
                "new tensor, or call it in a module of its own, which then is kept whole"
            )
        # Autograd gives a view of an input that a forward returns as it is.
        return map_leaves(lambda leaf: leaf.view_as(leaf) if id(leaf) in given else leaf, value)


def _handler(classes: list[type[Function]], original: Callable[..., Any], record: Record) -> Callable[..., Any]:
    thread, running = threading.get_ident(), False

    def handle(*args: Any, **kwargs: Any) -> Any:
        nonlocal running
        has_context = bool(args) and isinstance(args[0], FunctionCtx)
        own = type(args[0])._forward_cls if has_context else classes[0]
        applied = has_context or own.setup_context is not Function.setup_context
        if running or threading.get_ident() != thread or torch.is_grad_enabled() or not applied or kwargs:
            return original(*args, **kwargs)
        if not has_context and len(classes) > 1:
            raise CaptureError(f"{classes[0].__name__} and {classes[1].__name__} have one forward: give each its own")
        running = True
        try:
            front = args[:has_context]
            return record(CustomFunction(own), lambda *given: original(*front, *given), args[has_context:])
        finally:
            running = False

    return handle


def _calling(handler: Callable[..., Any], code: types.CodeType) -> types.CodeType:
    """Code that calls ``handler``, for a function that had ``code``."""
    own = _template(len(code.co_freevars))
    consts = tuple(handler if const == "handler" else const for const in own.co_consts)
    return own.replace(co_consts=consts, co_name=code.co_name)


@cache
def _template(cells: int) -> types.CodeType:
    """Code for a function with so many variables of enclosing functions, whose frames must hold as many."""
    names = ", ".join(f"v{number}" for number in range(cells))
    forward = f"def forward(*args, **kwargs):\n  handler = 'handler'\n  return handler(*args, **kwargs)\n  {names}"
    outer = compile(f"def outer({names}):\n {forward}\n", __file__, "exec").co_consts[0]
    return next(const for const in outer.co_consts if isinstance(const, types.CodeType))
