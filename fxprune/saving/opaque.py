"""Modules of classes from outside torch: the class's import path, which loading wants allowed, and attributes as data.

Attributes are the values of a folder (:mod:`fxprune.saving.values`), sets, tensors, modules of the network, torch's
own functions of tensors, and what is imported by a name that the caller allows: classes, functions, members of
enumerations, objects and partial functions made of them. Nothing is constructed or called but ``functools.partial``: an
object is made empty and given its attributes. No attribute may stand where the class, or every module, has a method, a
hook or a slot of its own.
"""

from __future__ import annotations

import enum
import functools
import importlib
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from fxprune.errors import ArtefactError
from fxprune.saving.layers import build_layer, describe_layer, submodule
from fxprune.saving.targets import resolve_function, tensor_function_name
from fxprune.saving.values import decode, encode

Imported = Mapping[str, Any]
STATE_TENSOR = "_state."
_SLOTS = ("_parameters", "_buffers", "_modules")
# What every module has of its own: methods, hooks, slots, the mode.
_OWN = frozenset([*dir(nn.Module()), *vars(nn.Module()), "meta"])
_OWN_OF_GRAPHS = frozenset(
    [
        *vars(GraphModule(nn.Module(), torch.fx.Graph())),
        "_kept_out",
        "_graphs",
        "_forwards",
        "_chosen",
        "_class_name",
        "_mode",
        "modes",
    ]
)


# -- imports -----------------------------------------------------------------------------------------------------------


def import_path(target: Any, role: str) -> str:
    """``module:qualified.name`` of a class or function.

    Raises:
        ArtefactError: importing that name would not give it, as for what was defined inside a function.
    """
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    found: Any = sys.modules.get(str(module))
    for part in str(name).split("."):
        found = getattr(found, part, None)
    if found is not target or module == "__main__":
        where = "the main script" if module == "__main__" else "its module"
        raise ArtefactError(
            f"{role} is {module}.{name}, which cannot be imported from {where} by that name: define it at the top "
            "level of a module that the place of loading has too"
        )
    return f"{module}:{name}"


def resolve_imports(wanted: Iterable[str], allow: Iterable[Any]) -> Imported:
    """What each import path leads to; nothing is imported unless all are allowed.

    ``allow`` holds import paths (``module:name`` or ``module.name``), or the classes and functions themselves.

    Raises:
        ArtefactError: one is not allowed, or cannot be imported.
    """
    allowed = _allowed(allow)
    missing = [path for path in wanted if path not in allowed]
    if missing:
        listed = ", ".join(repr(path) for path in missing)
        raise ArtefactError(
            f"it needs code from outside torch, which loading imports only where you name it: if you trust that code, "
            f"pass allow=[{listed}]"
        )
    return {path: allowed[path] if allowed[path] is not None else _imported(path) for path in wanted}


def _allowed(allow: Iterable[Any]) -> Imported:
    named: dict[str, Any] = {}
    for item in [allow] if isinstance(allow, str) else allow:
        if not isinstance(item, str):
            named[import_path(item, "an entry of allow")] = item
        elif ":" in item:
            named[item] = None
        else:
            # Where the module ends cannot be seen in a name without a colon, so every reading is allowed.
            parts = item.split(".")
            named |= {f"{'.'.join(parts[:i])}:{'.'.join(parts[i:])}": None for i in range(1, len(parts))}
    return named


def _imported(path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ArtefactError(f"{path} cannot be imported here: {error}") from error
    return found


# -- modules -----------------------------------------------------------------------------------------------------------


def is_plain_layer(path: str, module: nn.Module) -> bool:
    """Whether a layer of torch is fully told by its constructor arguments, so that code around it finds it whole."""
    try:
        return set(vars(build_layer(path, describe_layer(path, module)))) == set(vars(module))
    except ArtefactError:
        return False


def describe_opaque(path: str, module: nn.Module, writer: StateWriter) -> dict[str, Any]:
    """Import path, attributes and empty places of a module, as JSON data.

    Raises:
        ArtefactError: the class cannot be imported by its name, or an attribute cannot be written down.
    """
    name = path or "the network"
    data: dict[str, Any] = {"kind": writer.need(type(module), f"the class of {name}")}
    if attributes := writer.attributes(plain_attributes(module), type(module), name):
        data["state"] = attributes
    absent = {slot: [k for k, v in vars(module)[slot].items() if v is None] for slot in _SLOTS}
    if any(absent.values()):
        data["absent"] = {slot: names for slot, names in absent.items() if names}
    return data


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """What a module holds beside tensors, submodules and what every module has."""
    skipped = {*vars(nn.Module()), "meta", *(_OWN_OF_GRAPHS if isinstance(module, GraphModule) else ())}
    return {k: v for k, v in vars(module).items() if k not in skipped and not isinstance(v, torch.Tensor)}


def build_opaque(data: Mapping[str, Any], found: Imported) -> nn.Module:
    """An empty module of the class, made without running its constructor.

    Raises:
        ArtefactError: the import path leads to something else than a module class.
    """
    kind = found.get(data["kind"])
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise ArtefactError(f"{data['kind']!r:.80} is no class of modules that it may be made of")
    module: nn.Module = kind.__new__(kind)
    nn.Module.__init__(module)
    for slot, names in data.get("absent", {}).items():
        if slot not in _SLOTS:
            raise ArtefactError(f"{slot!r:.80} is no place for tensors or modules")
        vars(module)[slot].update(dict.fromkeys(names))
    return module


def fill(module: nn.Module, state: Mapping[str, Any], reader: StateReader) -> None:
    """Give a module its attributes.

    Raises:
        ArtefactError: an attribute is malformed, or one that its class or every module keeps for itself.
    """
    vars(module).update(reader.attributes(state, type(module)))


def _check_attribute(name: Any, value: Any, kind: type, owner: str) -> None:
    """Raise ArtefactError unless data may give an object of a class such an attribute.

    A number or a string can do nothing, and libraries note such things under the names of public methods (``type``).
    """
    if not isinstance(name, str) or not name.isidentifier() or name.startswith("__"):
        raise ArtefactError(f"{owner} has an attribute called {name!r:.80}, which cannot be the name of an attribute")
    if isinstance(value, (str, int, float)) and not name.startswith("_") and name != "forward":
        return
    own = issubclass(kind, nn.Module) and (name in _OWN or (issubclass(kind, GraphModule) and name in _OWN_OF_GRAPHS))
    inherited = next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)
    if own or callable(inherited) or hasattr(type(inherited), "__get__"):
        raise ArtefactError(f"{owner} has an attribute called {name!r:.80}, which its class keeps for itself")


# -- attributes --------------------------------------------------------------------------------------------------------


class StateWriter:
    """Writes attributes down, collecting the tensors among them and the import paths that they need.

    ``modules`` gives the path of every module of the network by id.
    """

    def __init__(self, modules: Mapping[int, str]) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.imports: dict[str, None] = {}
        self._modules = modules
        self._inside: list[int] = []

    def attributes(self, values: Mapping[str, Any], kind: type, owner: str) -> dict[str, Any]:
        """Every attribute of an object of a class, by name.

        Raises:
            ArtefactError: one cannot be written down; the message names it.
        """
        for name, value in values.items():
            _check_attribute(name, value, kind, f"cannot save {owner}: it")
        return {name: self._encode(value, f"{owner}.{name}") for name, value in values.items()}

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
        if (name := tensor_function_name(value)) is not None:
            return {"function": name}
        if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
            return {"import": self.need(value, place)}
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

    def _object(self, value: Any, place: str) -> dict[str, Any]:
        plain = hasattr(value, "__dict__") and not any("__slots__" in vars(c) for c in type(value).__mro__[:-1])
        if not plain or _own_new(type(value)):
            raise ArtefactError(f"cannot save {place}: there is no way to write a {type(value).__qualname__} as data")
        kind = self.need(type(value), place)
        return {"object": [kind, self.attributes(vars(value), type(value), place)]}


def _own_new(kind: type) -> bool:
    """Whether instances are made in a way of their own, as those of builtin types and their subclasses are."""
    return any("__new__" in vars(base) for base in kind.__mro__[:-1])


class StateReader:
    """Reads what :class:`StateWriter` wrote, given the network, the tensors and what import paths lead to."""

    def __init__(self, network: nn.Module, tensors: Mapping[str, torch.Tensor], found: Imported) -> None:
        self._tensors = tensors
        self._found = found
        self._kinds: dict[str, Callable[[Any], Any]] = {
            "tuple": lambda items: tuple(map(self.read, items)),
            "set": lambda items: set(map(self.read, items)),
            "frozenset": lambda items: frozenset(map(self.read, items)),
            "dict": lambda pairs: {self.read(key): self.read(value) for key, value in pairs},
            "member": lambda parts: self._member(*parts),
            "partial": lambda parts: self._partial(*parts),
            "module": lambda path: submodule(network, path),
            "tensor": lambda name: self._tensors[name],
            "function": _tensor_function,
            "import": self._named,
            "object": lambda parts: self._object(*parts),
        }

    def attributes(self, data: Mapping[str, Any], kind: type) -> dict[str, Any]:
        """The attributes of an object of a class, by name, as :meth:`StateWriter.attributes` wrote them.

        Raises:
            ArtefactError: a name is one that the class or Python itself uses, or a value is malformed.
        """
        values = {name: self.read(value) for name, value in data.items()}
        for name, value in values.items():
            _check_attribute(name, value, kind, "it")
        return values

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

    def _named(self, path: str) -> Any:
        if path not in self._found:
            raise ArtefactError(f"it uses {path!r:.80}, which its list of imports lacks")
        return self._found[path]

    def _member(self, path: str, name: str) -> Any:
        kind = self._named(path)
        if not isinstance(kind, enum.EnumMeta):
            raise ArtefactError(f"{path} is no enumeration")
        return kind[name]

    def _partial(self, function: Any, args: Any, kwargs: Any) -> Any:
        if not isinstance(function, dict) or not set(function) <= {"function", "import", "partial"}:
            raise ArtefactError("a partial function is one of nothing that is imported or torch's own")
        return functools.partial(self.read(function), *self.read(args), **self.read(kwargs))

    def _object(self, path: str, attributes: dict[str, Any]) -> Any:
        kind = self._named(path)
        if not isinstance(kind, type) or issubclass(kind, (nn.Module, torch.Tensor)):
            raise ArtefactError(f"{path} is no class of plain objects")
        made = object.__new__(kind)
        vars(made).update(self.attributes(attributes, kind))
        return made


def _tensor_function(name: Any) -> Callable[..., Any]:
    found = resolve_function(name)
    if tensor_function_name(found) is None:
        raise ArtefactError(f"an attribute holds the function {name!r:.80}, which is none of torch's own")
    return found
