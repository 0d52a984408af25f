"""Attributes of objects from outside torch as JSON data, and back.

As in :mod:`fxprune.artefacts.values`, plain JSON values stand for themselves and everything else is an object with one
key that names its kind. Nothing is constructed or called: an object is made empty and given its attributes.
"""

from __future__ import annotations

import enum
import functools
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from fxprune.artefacts.imports import import_path
from fxprune.artefacts.targets import function_name, resolve_function
from fxprune.artefacts.values import decode, encode
from fxprune.errors import ArtefactError

__all__ = ["STATE_TENSOR", "StateReader", "StateWriter", "read_attributes"]

STATE_TENSOR = "_state."


class StateWriter:
    """Writes attributes down, collecting the tensors among them and the import paths that they need.

    ``modules`` gives the path of every module of the network by id.
    """

    def __init__(self, modules: Mapping[int, str]) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.imports: dict[str, None] = {}
        self._modules = modules
        self._inside: list[int] = []

    def attributes(self, values: Mapping[str, Any], owner: str) -> dict[str, Any]:
        """Every attribute by name.

        Raises:
            ArtefactError: one cannot be written down; the message names it.
        """
        written = {}
        for name, value in values.items():
            if not name.isidentifier() or name.startswith("__"):
                raise ArtefactError(f"cannot save {owner}: it has an attribute called {name!r}")
            written[name] = self._encode(value, f"{owner}.{name}")
        return written

    def need(self, target: Any, role: str) -> str:
        """The import path of a class or function, noted as needed."""
        path = import_path(target, role)
        self.imports.setdefault(path)
        return path

    def _encode(self, value: Any, place: str) -> Any:
        if id(value) in self._inside:
            raise ArtefactError(f"cannot save {place}: it holds itself")
        self._inside.append(id(value))
        try:
            return self._container(value, place)
        finally:
            self._inside.pop()

    def _container(self, value: Any, place: str) -> Any:
        if type(value) in (list, tuple, torch.Size, set, frozenset):
            items = [self._encode(item, place) for item in value]
            if isinstance(value, list):
                return items
            return {"tuple" if isinstance(value, tuple) else type(value).__name__: items}
        if type(value) in (dict, OrderedDict):
            return {"dict": [[self._encode(k, place), self._encode(v, place)] for k, v in value.items()]}
        if isinstance(value, enum.Enum):
            return {"member": [self.need(type(value), place), value.name]}
        if isinstance(value, functools.partial):
            parts = (value.func, value.args, value.keywords)
            return {"partial": [self._encode(part, place) for part in parts]}
        return self._leaf(value, place)

    def _leaf(self, value: Any, place: str) -> Any:
        if isinstance(value, nn.Module):
            return self._module(value, place)
        if isinstance(value, torch.Tensor):
            return self._tensor(value, place)
        if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
            return self._callable(value, place)
        try:
            return encode(value)
        except ArtefactError:
            return self._object(value, place)

    def _module(self, value: nn.Module, place: str) -> dict[str, Any]:
        if id(value) not in self._modules:
            raise ArtefactError(f"cannot save {place}: it is a module that is not registered in the network")
        return {"module": self._modules[id(value)]}

    def _tensor(self, value: torch.Tensor, place: str) -> dict[str, Any]:
        if value.requires_grad or value.is_meta:
            raise ArtefactError(f"cannot save {place}: a tensor that is trained, or without values, must be registered")
        name = f"{STATE_TENSOR}{len(self.tensors)}"
        self.tensors[name] = value
        return {"tensor": name}

    def _callable(self, value: Any, place: str) -> dict[str, Any]:
        try:
            return {"function": function_name(_harmless(value))}
        except (ArtefactError, TypeError):
            return {"import": self.need(value, place)}

    def _object(self, value: Any, place: str) -> dict[str, Any]:
        plain = hasattr(value, "__dict__") and not any("__slots__" in vars(c) for c in type(value).__mro__[:-1])
        if not plain or _own_new(type(value)):
            raise ArtefactError(f"cannot save {place}: there is no way to write a {type(value).__qualname__} as data")
        kind = self.need(type(value), place)
        return {"object": [kind, self.attributes(vars(value), place)]}


def _own_new(kind: type) -> bool:
    """Whether instances are made in a way of their own, as those of builtin types and their subclasses are."""
    return any("__new__" in vars(base) for base in kind.__mro__[:-1])


class StateReader:
    """Reads what :class:`StateWriter` wrote, given the network, the tensors and what import paths lead to."""

    def __init__(self, network: nn.Module, tensors: Mapping[str, torch.Tensor], found: Mapping[str, Any]) -> None:
        self._network = network
        self._tensors = tensors
        self._found = found
        self._kinds: dict[str, Callable[[Any], Any]] = {
            "tuple": lambda items: tuple(map(self.read, items)),
            "set": lambda items: set(map(self.read, items)),
            "frozenset": lambda items: frozenset(map(self.read, items)),
            "dict": lambda pairs: {self.read(key): self.read(value) for key, value in pairs},
            "member": lambda parts: self._member(*parts),
            "partial": lambda parts: self._partial(*map(self.read, parts)),
            "module": network.get_submodule,
            "tensor": lambda name: self._tensors[name],
            "function": _function,
            "import": self.named,
            "object": lambda parts: self._object(*parts),
        }

    def read(self, data: Any) -> Any:
        """One value.

        Raises:
            ArtefactError: the data is not what a writer writes.
        """
        if isinstance(data, list):
            return [self.read(item) for item in data]
        if isinstance(data, dict) and len(data) == 1:
            ((kind, content),) = data.items()
            if kind in self._kinds:
                return self._kinds[kind](content)
        return decode(data, {})

    def named(self, path: str) -> Any:
        """What an import path leads to."""
        if path not in self._found:
            raise ArtefactError(f"it uses {path!r:.80}, which its list of imports lacks")
        return self._found[path]

    def _member(self, path: str, name: str) -> Any:
        kind = self.named(path)
        if not isinstance(kind, enum.EnumMeta):
            raise ArtefactError(f"{path} is no enumeration")
        return kind[name]

    def _partial(self, function: Any, args: Any, kwargs: Any) -> Any:
        return functools.partial(function, *args, **kwargs)

    def _object(self, path: str, attributes: dict[str, Any]) -> Any:
        kind = self.named(path)
        if not isinstance(kind, type) or issubclass(kind, (nn.Module, torch.Tensor)):
            raise ArtefactError(f"{path} is no class of plain objects")
        made = object.__new__(kind)
        vars(made).update(read_attributes(attributes, self))
        return made


def _function(name: Any) -> Callable[..., Any]:
    found: Callable[..., Any] = _harmless(resolve_function(name))
    return found


def _harmless(function: Any) -> Any:
    """The function, unless what it does depends on who calls it with what: a graph's own calls are looked at."""
    if function is getattr:
        raise ArtefactError("an attribute holds getattr, with which data could reach anything")
    return function


def read_attributes(data: Mapping[str, Any], reader: StateReader) -> dict[str, Any]:
    """Attributes by name, as :meth:`StateWriter.attributes` wrote them.

    Raises:
        ArtefactError: a name is one that Python itself uses.
    """
    for name in data:
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("__"):
            raise ArtefactError(f"{name!r:.80} cannot be the name of an attribute")
    return {name: reader.read(value) for name, value in data.items()}
