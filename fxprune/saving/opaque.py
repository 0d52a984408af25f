"""Modules of classes from outside torch: the class's import path, which loading must allow, and attributes as data.

An object among the attributes is made without its constructor and given its own attributes. No attribute may replace a
method, hook or slot of the class or of every module.
"""

from __future__ import annotations

import enum
import functools
import pkgutil
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule

from fxprune.errors import ArtefactError, OptionError, described
from fxprune.rewriting.pruned_module import PrunedGraphModule
from fxprune.saving.layers import build_layer, describe_layer, submodule
from fxprune.saving.targets import OPERATORS, resolve_function, tensor_function_name
from fxprune.saving.values import Codec, Kind

Imported = Mapping[str, Any]
STATE_TENSOR = "_state."
_SLOTS = ("_parameters", "_buffers", "_modules")
# Names that every module has: methods, hooks, slots, the mode.
_OWN = frozenset([*dir(nn.Module()), *vars(nn.Module()), "meta"])
_OWN_OF_GRAPHS = frozenset((*vars(GraphModule(nn.Module(), Graph())), *vars(PrunedGraphModule({}, {"eval": Graph()}))))


def import_path(target: Any, role: str) -> str:
    """``module:qualified.name`` of a class or function. Raises ArtefactError: importing that returns another object."""
    if isinstance(target, OPERATORS):
        return f"torch.ops:{target}"
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


def resolve_imports(wanted: Iterable[str], allowed: Imported) -> Imported:
    """The object of each import path; nothing is imported unless all paths are among those of :func:`allowed_imports`.

    Raises ArtefactError: one is not allowed, or cannot be imported.
    """
    missing = [path for path in wanted if path not in allowed]
    if missing:
        listed = ", ".join(repr(path) for path in missing)
        raise ArtefactError(
            f"it needs code from outside torch, which loading imports only where you name it: if you trust that code, "
            f"pass allow=[{listed}]"
        )
    return {path: allowed[path] if allowed[path] is not None else _imported(path) for path in wanted}


def allowed_imports(allow: Iterable[Any]) -> Imported:
    """The objects, or None if they are yet to be imported, by import path.

    ``allow`` holds import paths (``module:name`` or ``module.name``), or the classes and functions themselves. Raises
    OptionError: it does not; ArtefactError: a class or function cannot be imported by its name.
    """
    named: dict[str, Any] = {}
    items = allow if isinstance(allow, Iterable) and not isinstance(allow, (str, bytes)) else [allow]
    for item in items:
        if not isinstance(item, str):
            if not callable(item):
                raise OptionError(f"allow takes import paths, classes and functions, not {item!r:.80}")
            named[import_path(item, "an entry of allow")] = item
        elif ":" in item:
            named[item] = None
        else:
            # Without a colon, it is unknown where the module's name ends, so every split is allowed.
            parts = item.split(".")
            named |= {f"{'.'.join(parts[:i])}:{'.'.join(parts[i:])}": None for i in range(1, len(parts))}
    return named


def _imported(path: str) -> Any:
    try:
        return pkgutil.resolve_name(path)
    except (Exception, SystemExit) as error:  # the code of the module may raise anything
        if path.startswith("torch.ops:"):
            raise ArtefactError(f"{path} is not defined here: import the library that defines it, then load") from error
        raise ArtefactError(f"{path} cannot be imported here: {described(error)}") from error


def is_plain_layer(path: str, module: nn.Module) -> bool:
    """Whether a layer of torch is fully determined by its constructor arguments, as foreign code around it needs."""
    try:
        return set(vars(build_layer(path, describe_layer(path, module)))) == set(vars(module))
    except ArtefactError:
        return False


def describe_opaque(path: str, module: nn.Module, writer: AttributeWriter) -> dict[str, Any]:
    """Import path, attributes and empty slots of a module as JSON data. Raises ArtefactError: that is impossible."""
    name = path or "the network"
    data: dict[str, Any] = {"kind": writer.need(type(module), f"the class of {name}")}
    if attributes := writer.attributes(plain_attributes(module), type(module), name):
        data["state"] = attributes
    absent = {slot: [k for k, v in vars(module)[slot].items() if v is None] for slot in _SLOTS}
    if any(absent.values()):
        data["absent"] = {slot: names for slot, names in absent.items() if names}
    return data


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """A module's attributes, without tensors, submodules and the attributes that every module has."""
    skipped = {*vars(nn.Module()), "meta", *(_OWN_OF_GRAPHS if isinstance(module, GraphModule) else ())}
    return {k: v for k, v in vars(module).items() if k not in skipped and not isinstance(v, torch.Tensor)}


def build_opaque(data: Mapping[str, Any], found: Imported) -> nn.Module:
    """An empty module of the class, made without its constructor. Raises ArtefactError: it is not a module class."""
    kind = found.get(data["kind"])
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise ArtefactError(f"{data['kind']!r:.80} is not a module class among its imports")
    module: nn.Module = kind.__new__(kind)
    nn.Module.__init__(module)
    for slot, names in data.get("absent", {}).items():
        if slot not in _SLOTS:
            raise ArtefactError(f"{slot!r:.80} is not a table of tensors or modules")
        vars(module)[slot].update(dict.fromkeys(names))
    return module


class AttributeWriter(Codec):
    """Writes attributes as data, and collects the tensors among them and the import paths that they need."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(ATTRIBUTES)
        self.tensors: dict[str, torch.Tensor] = {}
        self.imports: dict[str, None] = {}
        self._paths: dict[int, str] = {id(module): path for path, module in network.named_modules()}
        self._inside: list[int] = []
        self._place = ""

    def attributes(self, values: Mapping[str, Any], kind: type, owner: str) -> dict[str, Any]:
        """Every attribute of an object, by name. Raises ArtefactError: one cannot be written as data."""
        outer, data = self._place, {}
        for name, value in values.items():
            _check_attribute(name, value, kind, f"cannot save {owner}: it")
            self._place = f"{owner}.{name}"
            data[name] = self.write(value)
        self._place = outer
        return data

    def need(self, target: Any, role: str = "") -> str:
        """The import path of a class or function, recorded as needed."""
        path: str = import_path(target, role or self._place)
        self.imports.setdefault(path)
        return path

    def write(self, value: Any) -> Any:
        """See :class:`Codec`; a value that contains itself is refused."""
        if id(value) in self._inside:
            raise ArtefactError(f"cannot save {self._place}: it holds itself")
        self._inside.append(id(value))
        try:
            return super().write(value)
        finally:
            self._inside.pop()

    def write_other(self, value: Any) -> Any:
        """The class of an object and its attributes."""
        plain = hasattr(value, "__dict__") and not any("__slots__" in vars(c) for c in type(value).__mro__[:-1])
        # Builtin types and their subclasses create their instances in their own way.
        if not plain or any("__new__" in vars(base) for base in type(value).__mro__[:-1]):
            kind = type(value).__qualname__
            raise ArtefactError(f"cannot save {self._place}: there is no way to write a {kind} as data")
        return {"object": [self.need(type(value)), self.attributes(vars(value), type(value), self._place)]}

    def module(self, value: nn.Module) -> str:
        """The path of a module of the network."""
        if id(value) not in self._paths:
            raise ArtefactError(f"cannot save {self._place}: it is a module that is not registered in the network")
        return self._paths[id(value)]

    def tensor(self, value: torch.Tensor) -> str:
        """The name under which a tensor is stored."""
        if value.requires_grad or value.is_meta:
            reason = "a tensor that is trained, or without values, must be registered"
            raise ArtefactError(f"cannot save {self._place}: {reason}")
        name = f"{STATE_TENSOR}.{len(self.tensors)}"  # two dots: no tensor of the network is called so
        self.tensors[name] = value
        return name


class AttributeReader(Codec):
    """Reads the data of :class:`AttributeWriter`, given the network, the tensors and the objects of import paths."""

    def __init__(self, network: nn.Module, tensors: Mapping[str, torch.Tensor], found: Imported) -> None:
        super().__init__(ATTRIBUTES)
        self.network = network
        self.tensors = tensors
        self._found = found

    def attributes(self, data: Mapping[str, Any], kind: type) -> dict[str, Any]:
        """The attributes of an object, by name. Raises ArtefactError: one is malformed, or its name is reserved."""
        values = {name: self.read(value) for name, value in data.items()}
        for name, value in values.items():
            _check_attribute(name, value, kind, "it")
        return values

    def named(self, path: str, kind: type = object) -> Any:
        """The object of an import path, an instance of ``kind``."""
        if path not in self._found:
            raise ArtefactError(f"it uses {path!r:.80}, which its list of imports lacks")
        if not isinstance(found := self._found[path], kind):
            raise ArtefactError(f"{path} is no {'enumeration' if kind is enum.EnumMeta else 'class of plain objects'}")
        return found


def _check_attribute(name: Any, value: Any, kind: type, owner: str) -> None:
    """Raise ArtefactError unless data may set this attribute on an object of the class.

    Numbers and strings are harmless, and libraries store them under names of public methods (``type``).
    """
    if not isinstance(name, str) or not name.isidentifier() or name.startswith("__"):
        raise ArtefactError(f"{owner} has an attribute called {name!r:.80}, which cannot be the name of an attribute")
    if isinstance(value, (str, int, float)) and not name.startswith("_") and name != "forward":
        return
    own = issubclass(kind, nn.Module) and (name in _OWN or (issubclass(kind, GraphModule) and name in _OWN_OF_GRAPHS))
    inherited = next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)
    if own or callable(inherited) or hasattr(type(inherited), "__get__"):
        raise ArtefactError(f"{owner} has an attribute called {name!r:.80}, which its class keeps for itself")


def _read_partial(parts: Any, codec: Any) -> Any:
    function, args, kwargs = parts
    if not isinstance(function, dict) or not set(function) <= {"function", "import", "partial"}:
        raise ArtefactError("a partial function may wrap only an imported function or one of torch's own")
    return functools.partial(codec.read(function), *codec.read(args), **codec.read(kwargs))


def _read_function(name: Any, _: Any) -> Callable[..., Any]:
    found = resolve_function(name)
    if tensor_function_name(found) is None:
        raise ArtefactError(f"an attribute holds the function {name!r:.80}, which is not one of torch's own")
    return found


def _read_object(parts: Any, codec: Any) -> Any:
    path, attributes = parts
    kind = codec.named(path, type)
    if issubclass(kind, (nn.Module, torch.Tensor)):
        raise ArtefactError(f"{path} is not a class of plain objects")
    made = object.__new__(kind)
    vars(made).update(codec.attributes(attributes, kind))
    return made


def _is_custom(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, torch.autograd.Function)


def _read_custom(kind: Any, path: str) -> Any:
    if not _is_custom(kind):
        raise ArtefactError(f"{path} is no custom autograd function")
    return kind


def _set(kind: type) -> Kind:
    return Kind(
        lambda value: type(value) is kind,
        lambda value, codec: [codec.write(item) for item in value],
        lambda items, codec: kind(codec.read(item) for item in items),
        lambda items, codec: f"{kind.__name__}([{codec.prints(items)}])",
    )


# The kinds of values in attributes besides plain ones. Nothing but ``functools.partial`` is constructed or called.
ATTRIBUTES: dict[str, Kind] = {
    "set": _set(set),
    "frozenset": _set(frozenset),
    "member": Kind(
        lambda value: isinstance(value, enum.Enum),
        lambda value, codec: [codec.need(type(value)), value.name],
        lambda parts, codec: codec.named(parts[0], enum.EnumMeta)[parts[1]],
        lambda parts, codec: f"{codec.name(parts[0])}.{parts[1]}",
    ),
    "partial": Kind(
        lambda value: isinstance(value, functools.partial),
        lambda value, codec: [codec.write(part) for part in (value.func, value.args, value.keywords)],
        _read_partial,
        lambda parts, codec: "functools.partial({}, *{}, **{})".format(*map(codec.print, parts)),
    ),
    "namespace": Kind(
        lambda value: type(value) is types.SimpleNamespace,
        lambda value, codec: codec.write(vars(value)),
        lambda pairs, codec: types.SimpleNamespace(**codec.read(pairs)),
        lambda pairs, codec: f"types.SimpleNamespace(**{codec.print(pairs)})",
    ),
    "module": Kind(
        lambda value: isinstance(value, nn.Module),
        lambda value, codec: codec.module(value),
        lambda path, codec: submodule(codec.network, path),
        lambda path, codec: codec.access(path),
    ),
    "tensor": Kind(
        lambda value: isinstance(value, torch.Tensor),
        lambda value, codec: codec.tensor(value),
        lambda name, codec: codec.tensors[name],
        lambda name, codec: codec.constant(name),
    ),
    "function": Kind(
        lambda value: tensor_function_name(value) is not None,
        lambda value, _: tensor_function_name(value),
        _read_function,
        lambda name, _: str(name),
    ),
    "apply": Kind(  # of a custom autograd function
        lambda value: _is_custom(getattr(value, "__self__", None)) and value == value.__self__.apply,
        lambda value, codec: codec.need(value.__self__),
        lambda path, codec: _read_custom(codec.named(path, type), path).apply,
        lambda path, codec: f"{codec.name(path)}.apply",
    ),
    "import": Kind(
        lambda value: isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)),
        lambda value, codec: codec.need(value),
        lambda path, codec: codec.named(path),
        lambda path, codec: codec.name(path),
    ),
    "object": Kind(
        lambda _: False,  # written by ``write_other``, for values of no other kind
        lambda *_: None,
        _read_object,
        lambda parts, codec: f"restored_object({codec.name(parts[0])}, {codec.attributes(parts[1])})",
    ),
}
