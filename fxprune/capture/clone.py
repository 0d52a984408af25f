"""Copies of tensors and models on the meta device, without values."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.capture.numbers import Traced, plain, watching
from fxprune.capture.objects import is_dense, is_same
from fxprune.capture.reachable import is_left_out
from fxprune.errors import CaptureError, described
from fxprune.util.copies import LITERALS, attributes_of, copied_attributes, copy_module, tensors_in, with_literals_of
from fxprune.util.inheriting import WATCHES
from fxprune.util.paths import modules_of, named_modules

META = torch.device("meta")
_DICT: Any = vars(nn.Module)["__dict__"]
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def meta_like(tensor: Tensor) -> Tensor:
    """An empty tensor of the same shape, strides and dtype on the meta device."""
    # There empty_like is Python code, ten times slower than empty.
    if tensor.layout is torch.strided and tensor.is_contiguous():
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=META)
    return torch.empty_like(tensor, device=META, requires_grad=False)


def on_meta(value: Any) -> Any:
    """An argument as it is passed to a run on the meta device, where numbers need no origin."""
    if isinstance(value, Traced):
        return value.value
    if isinstance(value, slice):
        return slice(*map(plain, (value.start, value.stop, value.step)))
    if isinstance(value, torch.device):
        return META
    if isinstance(value, torch.Tensor) and value.device != META:
        if value.layout is not torch.strided:
            raise CaptureError(f"the forward uses a tensor of layout {value.layout} from outside: hold it dense")
        return meta_like(value)
    return value


def conversion_on_meta(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of ``to()`` and ``type()`` for a run on the meta device, where they name devices in words."""
    if name == "to":
        kwargs = {key: META if key == "device" and value is not None else value for key, value in kwargs.items()}
        return tuple(META if isinstance(value, str) else value for value in args), kwargs
    if name == "type" and len(args) > 1:
        kind: Any = getattr(torch, args[1].split(".")[-1]) if isinstance(args[1], str) else args[1]
        return (args[0], getattr(kind, "dtype", kind), *args[2:]), kwargs
    return args, kwargs


CallHandler = Callable[[nn.Module, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


def meta_clone(model: nn.Module) -> nn.Module:
    """A deep copy of the model in which every tensor lies on the meta device; ties stay tied."""
    memo: dict[int, Any] = {}
    for tensor in _tensors(model):
        if id(tensor) not in memo:
            memo[id(tensor)] = _meta(tensor)
    try:
        return copy_module(model, dict(memo))
    except Exception as error:  # copying runs the user's own code: it may raise anything
        held = _uncopyable(model, memo)
        raise CaptureError(
            f"the model cannot be copied ({described(error)}){f' because of {held}' if held else ''}: make "
            "such a value where it is used, or keep it outside of the model"
        ) from error


def _uncopyable(model: nn.Module, memo: dict[int, Any]) -> str:
    """The first attribute of a module that cannot be copied, in words; "" if each can be copied by itself."""
    for path, module in named_modules(model):
        for name, value in attributes_of(module).items():
            try:
                copied_attributes({name: value} if name != "_modules" else {}, dict(memo))
            except Exception:
                return f"{path}.{name} ({type(value).__name__})".lstrip(".")
    return ""


def watch(model: nn.Module, handler: CallHandler, mode_is_used: Callable[[nn.Module, bool], None]) -> None:
    """Route calls of a copy's submodules through ``handler``, and report reads of ``training`` to ``mode_is_used``."""
    watched: dict[type, type] = {}
    for module in modules_of(model):
        cls: type[nn.Module] = type(module)
        if cls not in watched:
            attributes = {"training": _flag_of(cls, mode_is_used), "__dict__": _dict_of(mode_is_used)}
            watched[cls] = _watched(cls, handler, attributes)
        try:
            object.__setattr__(module, "__class__", watched[cls])  # a part may have any name, this one too
        except TypeError as error:
            raise CaptureError(f"calls of {cls.__module__}.{cls.__qualname__} cannot be watched: {error}") from error


def _flag_of(cls: type, mode_is_used: Callable[[nn.Module, bool], None]) -> property:
    """A descriptor for the flag of a class's modules that reports each read."""
    own = getattr(cls, "training", None)
    own = own if isinstance(own, property) else None

    def get(self: nn.Module) -> bool:
        mode_is_used(self, False)
        return bool(own.fget(self) if own and own.fget else vars(self)["training"])

    def put(self: nn.Module, mode: bool) -> None:
        before = own.fget(self) if own and own.fget else vars(self).get("training")
        if before is not None:  # else it is made: a slice of a list of modules is one of the same class
            mode_is_used(self, bool(before) is not bool(mode))
        if own and own.fset:
            own.fset(self, mode)
        else:
            vars(self)["training"] = mode

    return property(get, put)


def _dict_of(mode_is_used: Callable[[nn.Module, bool], None]) -> property:
    """A descriptor for the dict of attributes, which holds the flag, that reports reads by code of the user's."""

    def get(self: nn.Module) -> Any:
        if not is_left_out(sys._getframe(1).f_globals.get("__name__")):
            mode_is_used(self, False)
        return _DICT.__get__(self)

    return property(get, _DICT.__set__)


def _watched(cls: type[nn.Module], handler: CallHandler, attributes: dict[str, property]) -> type:
    """A subclass whose calls go through ``handler``."""
    original = cls.__call__
    convert: Any = cls._apply

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return handler(self, original, args, kwargs)

    def apply(self: nn.Module, function: Callable[[torch.Tensor], torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        """A conversion (``to()``, ``float()``); to what the tensors are, it changes nothing."""
        return self if _keeps(self, function) else convert(self, function, *args, **kwargs)

    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, WATCHES: True}
    try:
        return type(cls.__name__, (cls,), {"__call__": call, "_apply": apply, **attributes, **names})
    except TypeError as error:
        raise CaptureError(f"calls of {cls.__module__}.{cls.__qualname__} cannot be watched: {error}") from error


def _keeps(module: nn.Module, conversion: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    """Whether a conversion gives back each tensor of the module's kinds, on the device of the trace, as it is."""
    mode = watching()
    with torch._C.DisableTorchFunction():
        kinds = {tensor.dtype for tensor in (*module.parameters(), *module.buffers())}
        probes = [torch.empty(0, dtype=kind, device=mode.device) for kind in kinds] if mode else []
        return bool(probes) and all(conversion(probe) is probe for probe in probes)


class State:
    """What the modules of a private copy hold before its forward runs."""

    def __init__(self, model: nn.Module) -> None:
        self._attributes = [(path, module, dict(vars(module))) for path, module in named_modules(model)]
        self._tensors = [
            (path, module, held, dict(getattr(module, held)))
            for path, module, _ in self._attributes
            for held in ("_parameters", "_buffers")
            if getattr(module, held)
        ]
        self._plain = [
            (f"{path}.{name}".lstrip("."), tensor, tensor.clone())
            for path, _, before in self._attributes
            for name, value in before.items()
            if name not in _OF_EVERY_MODULE and type(value) not in LITERALS
            for tensor in tensors_in({name: value}, depth=4)
            if is_dense(tensor)
        ]

    @property
    def plain_tensors(self) -> list[torch.Tensor]:
        """Those in attributes, but under no name in the state dict."""
        return [tensor for _, tensor, _ in self._plain]

    def replaced_tensors(self) -> Iterator[tuple[str, torch.Tensor, Any]]:
        """Parameters and buffers that were replaced, caches aside: name, old, new."""
        return ((name, old, new) for name, old, new in self._replaced() if not _is_cache(old, new))

    def changed(self) -> tuple[str, ...]:
        """Other attributes that were set, tensors in them that were written, and buffers that serve as caches."""
        attributes = (
            f"{path}.{name}".lstrip(".")
            for path, module, before in self._attributes
            if not _is_equal(vars(module), before)
            for name, value in vars(module).items()
            if before.get(name, self) is not value
        )
        written = (name for name, tensor, before in self._plain if not is_same(tensor, before))
        return (*attributes, *written, *(name for name, old, new in self._replaced() if _is_cache(old, new)))

    def _replaced(self) -> Iterator[tuple[str, torch.Tensor, Any]]:
        for path, module, held, before in self._tensors:
            for name, old in before.items():
                new = getattr(module, held).get(name)
                if new is not old and old is not None:
                    yield f"{path}.{name}".lstrip("."), old, new


def _is_equal(now: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether two tables hold the same objects in the same order."""
    same = len(now) == len(before) and all(map(operator.is_, now.values(), before.values()))
    return same and all(map(operator.eq, now, before))


def _is_cache(old: torch.Tensor, new: Any) -> bool:
    """Whether a buffer got a tensor of another shape: then it caches a table for the size of the last input."""
    return not isinstance(old, nn.Parameter) and isinstance(new, torch.Tensor) and new.shape != old.shape


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    for module in modules_of(model):
        yield from (p for p in module._parameters.values() if p is not None)
        yield from (b for b in module._buffers.values() if b is not None)
        own = [v for n, v in vars(module).items() if type(v) not in LITERALS and n not in _OF_EVERY_MODULE]
        yield from (held for held in tensors_in(own, depth=4) if not held.is_leaf) if own else ()


def _meta(tensor: torch.Tensor) -> torch.Tensor:
    empty = meta_like(tensor)
    if isinstance(tensor, nn.Parameter):
        empty = nn.Parameter(empty, requires_grad=False)
    return with_literals_of(tensor, empty)
