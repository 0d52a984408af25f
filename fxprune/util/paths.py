"""Submodules and tensors of a model by dotted path, and graph modules that hold parts of any name."""

from __future__ import annotations

import copy
import functools
import itertools
import keyword
import re
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NoReturn

import torch
from torch import fx, nn

from fxprune.errors import ModelError

_TABLES = ("_modules", "_parameters", "_buffers")
# Names that generated source can use as they are: ASCII words. Python mangles two leading underscores in a class.
_WORD = re.compile(r"(?!__)[A-Za-z0-9_]+")
_DEEPEST = 50  # each number in a path becomes nested parentheses in generated code, and Python allows 200


@functools.lru_cache(maxsize=4096)
def _is_word(name: str) -> bool:
    return bool(_WORD.fullmatch(name)) and not keyword.iskeyword(name)


def attribute(model: nn.Module, name: str) -> Any:
    """The attribute at a dotted path. Raises AttributeError: there is none."""
    found: Any = model
    for part in name.split(".") if name else []:
        found = _held(found, part)
    return found


def _held(module: nn.Module, name: str) -> Any:
    """The part or attribute that a module holds under a name, even if its class gives the name another meaning."""
    for table in _tables(module):
        if name in table:
            return table[name]
    return getattr(module, name)


def _tables(module: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(module, nn.Module):
        return ()
    own = module.__dict__
    return own["_modules"], own["_parameters"], own["_buffers"]


def named_modules(root: nn.Module, *, again: bool = False) -> list[tuple[str, nn.Module]]:
    """The list of ``root.named_modules()``, several times as fast; ``again``: shared modules under all their names."""
    found: list[tuple[str, nn.Module]] = [("", root)]
    seen = {id(root)}
    # For each module around the present one: its path and a dot, and its children that are still to come.
    around = [("", iter(root._modules.items()))]
    while around:
        ahead, children = around[-1]
        for name, child in children:
            if child is None or (id(child) in seen and not again):
                continue
            seen.add(id(child))
            found.append((ahead + name, child))
            if child._modules:
                around.append((f"{ahead}{name}.", iter(child._modules.items())))
                break
        else:
            around.pop()
    own = any(kind.named_modules is not nn.Module.named_modules for kind in {type(module) for _, module in found})
    return list(root.named_modules(remove_duplicate=not again)) if own else found


def modules_of(root: nn.Module) -> list[nn.Module]:
    """The list of ``root.modules()``, several times as fast."""
    found = parts_of(root)
    own = any(kind.named_modules is not nn.Module.named_modules for kind in {type(module) for module in found})
    return list(root.modules()) if own else found


def parts_of(root: nn.Module) -> list[nn.Module]:
    """A module and all that it holds in its table of modules, each once, whatever its class says of them."""
    found: dict[int, nn.Module] = {}
    waiting: list[nn.Module | None] = [root]
    while waiting:
        module = waiting.pop()
        if module is not None and id(module) not in found:
            found[id(module)] = module
            waiting += reversed(module._modules.values())
    return list(found.values())


def named_buffers(root: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """The list of ``root.named_buffers()``, several times as fast."""
    return _named(root, "_buffers")


def named_parameters(root: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The list of ``root.named_parameters()``, several times as fast."""
    return _named(root, "_parameters")


def _named(root: nn.Module, table: str) -> list[tuple[str, Any]]:
    found: dict[int, tuple[str, Any]] = {}
    for path, module in named_modules(root):
        for name, tensor in getattr(module, table).items():
            if tensor is not None and id(tensor) not in found:
                found[id(tensor)] = (f"{path}.{name}" if path else name, tensor)
    return list(found.values())


def device_of(root: nn.Module) -> torch.device:
    """The device of a module's first tensor; the CPU if it has none."""
    tensors = itertools.chain(root.parameters(), root.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


@functools.cache
def _own_names() -> frozenset[str]:
    """The attribute names that a graph module uses itself; some exist only once it has a graph."""
    made = fx.GraphModule(nn.Module(), fx.Graph())
    return frozenset((*dir(made), *dir(type(made))))


class PlainNames:
    """Substitute names for parts: ASCII words that no module uses itself, each different from its siblings."""

    def __init__(self) -> None:
        self._taken = {*_own_names(), *itertools.chain(*map(dir, PARTS)), *keyword.kwlist}
        self._known: dict[str, str] = {"": ""}

    def of(self, name: str) -> str:
        """The plain form of a dotted name; a name that is already plain stays as it is."""
        if name not in self._known:
            parent, _, leaf = name.rpartition(".")
            word = leaf if _WORD.fullmatch(leaf) else "part_" + re.sub(r"[^A-Za-z0-9]+", "_", leaf).strip("_")
            words = (word, *(f"{word}_{n}" for n in range(2, len(self._known) + 4)))
            full = (f"{self.of(parent)}.{w}".lstrip(".") for w in words if w not in self._taken)
            self._known[name] = next(f for f in full if f not in self._known.values())
        return self._known[name]


class ModelPaths:
    """Look-ups by path in a model that does not change meanwhile: each module is searched for once.

    ``constants``: tensors that a graph of the model has besides its own, by name.
    """

    def __init__(self, model: nn.Module, constants: Mapping[str, torch.Tensor] = MappingProxyType({})) -> None:
        self._modules: dict[str, nn.Module] = {"": model}
        self._constants = constants

    def module(self, path: str) -> nn.Module:
        """The submodule at a path; the empty path is the model itself. Raises AttributeError: there is none."""
        found = self._modules.get(path)
        if found is None:
            parent, _, leaf = path.rpartition(".")
            found = _held(self.module(parent), leaf)
            if not isinstance(found, nn.Module):
                raise AttributeError(f"{path!r} is no module")
            self._modules[path] = found
        return found

    def attribute(self, name: str) -> Any:
        """The constant of that name, or the attribute at a dotted path."""
        if name in self._constants:
            return self._constants[name]
        path, _, leaf = name.rpartition(".")
        return _held(self.module(path), leaf)


class Parts(nn.Module):
    """Takes the place of a module whose own forward the graph does not call, and holds its parts.

    Parts can be read and replaced as in a Sequential, ModuleList or ModuleDict. Calls, hooks, and adding or removing a
    part raise ModelError, because the graph would ignore them.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Raise ModelError."""
        self._refuse("called")

    @property
    def _held(self) -> dict[str, Any]:
        return {**self._modules, **self._parameters}

    def __getitem__(self, key: int | str | slice) -> Any:
        held = self._held
        if isinstance(key, slice):
            some = type(self)()
            for name in list(held)[key]:
                hold(some, name, held[name])
            return some
        if isinstance(key, int) and all(name.isdigit() for name in held):
            key = str(key) if key >= 0 else list(held)[key]
        return held[key] if isinstance(key, str) else list(held.values())[key]

    def __setitem__(self, key: int | str, part: Any) -> None:
        old = self[key]
        hold(self, next(name for name, held in self._held.items() if held is old), part)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._held.values())

    def __len__(self) -> int:
        return len(self._held)

    def __bool__(self) -> bool:
        return True

    def __contains__(self, part: Any) -> bool:
        return part in self._held if isinstance(part, str) else any(part is held for held in self._held.values())

    def keys(self) -> Iterable[str]:
        """Names of the parts."""
        return self._held.keys()

    def values(self) -> Iterable[Any]:
        """The parts."""
        return self._held.values()

    def items(self) -> Iterable[tuple[str, Any]]:
        """Names and parts."""
        return self._held.items()

    def _refuse(self, what: str, *args: Any, **kwargs: Any) -> NoReturn:
        held = ", ".join(list(self._held)[:5]) or "tensors"
        raise ModelError(
            f"this module is not {what}: the pruned graph calls what it holds ({held}) directly; call the network, and "
            "put hooks on the layers inside or on the network"
        )

    register_forward_hook = register_forward_pre_hook = functools.partialmethod(
        _refuse, "called, so no hook on it fires"
    )
    register_full_backward_hook = register_full_backward_pre_hook = register_forward_hook
    append = insert = extend = pop = popitem = clear = update = setdefault = functools.partialmethod(
        _refuse, "called, so no part more or less changes what is computed"
    )
    __delitem__ = __add__ = __iadd__ = __mul__ = __imul__ = __rmul__ = __or__ = __ior__ = __ror__ = append


class SequentialParts(Parts, nn.Sequential):
    """Takes the place of a Sequential."""


class ModuleListParts(Parts, nn.ModuleList):
    """Takes the place of a ModuleList."""


class ModuleDictParts(Parts, nn.ModuleDict):  # type: ignore[misc]
    """Takes the place of a ModuleDict."""


class ParameterListParts(Parts, nn.ParameterList):
    """Takes the place of a ParameterList."""


class ParameterDictParts(Parts, nn.ParameterDict):  # type: ignore[misc]
    """Takes the place of a ParameterDict."""


PARTS = (SequentialParts, ModuleListParts, ModuleDictParts, ParameterListParts, ParameterDictParts)


def parts_like(module: nn.Module) -> type[Parts]:
    """The class that takes the place of a module: for a container, one that is of the same kind."""
    return next((kind for kind in PARTS if isinstance(module, kind.__bases__[1])), Parts)


def hold(module: nn.Module, name: str, part: Any) -> None:
    """Let a module hold a part (a module, parameter or buffer) at a dotted path, whose names may be any strings."""
    *parents, leaf = name.split(".")
    for parent in parents:
        if parent not in module._modules:
            module._modules[parent] = Parts()
        module = module._modules[parent]  # type: ignore[assignment]
    is_module, is_parameter = isinstance(part, nn.Module), isinstance(part, nn.Parameter)
    kind = _TABLES[0 if is_module else 1 if is_parameter else 2]
    vars(module)[kind][leaf] = part


def is_held(module: nn.Module, name: str) -> bool:
    """Whether there is a module or a tensor at a dotted path."""
    found: Any = module
    for part in name.split("."):
        for table in _tables(found):
            if part in table:
                found = table[part]
                break
        else:
            return False
    return found is not None


class PartsModule(fx.GraphModule):
    """A GraphModule over parts whose names may be any strings.

    Names are data, but torch.fx prints the targets of a graph into source as they are. So a target that is not a plain
    word, or that every GraphModule uses itself (``code``, ``graph``), is replaced by a numbered name. A property of
    that name looks the part up. State dicts have the true names.
    """

    # From a target in a graph to the true name of its part. Each module has its own class.
    _names: Mapping[str, str] = {}

    def __init__(self, root: Mapping[str, Any], graph: fx.Graph, class_name: str) -> None:
        """``root`` holds modules and tensors by true name; the targets of ``graph``, true names too, are replaced."""
        super().__init__({}, fx.Graph(), class_name)
        for name in sorted(root, key=lambda name: name.count(".")):  # parents come first
            if not is_held(self, name):
                hold(self, name, root[name])
        self.graph = graph

    def recompile(self) -> Any:
        """Generate ``forward`` from the graph again."""
        if not len(self._graph.nodes):
            return None  # the parts are not in place yet
        self._replace_targets(self._graph)
        return super().recompile()

    def __setattr__(self, name: str, value: Any) -> None:
        # If a part is named like an attribute (``graph``), torch would take ``self.graph = ...`` for a new part.
        own = name.startswith("_") or name in vars(self) or hasattr(type(self), name)
        if own and not isinstance(value, (nn.Module, torch.Tensor)) and any(name in table for table in _tables(self)):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def name_of(self, target: Any) -> str:
        """The true name of the part that a target in a graph of this module stands for."""
        return self._names.get(str(target), str(target))

    def _replace_targets(self, graph: fx.Graph) -> None:
        seen: dict[str, tuple[Any, bool]] = {}
        for node in graph.nodes:
            if node.op in ("call_module", "get_attr"):
                target = self._target(str(node.target), seen)
                if target != node.target:
                    node.target = target

    def _target(self, name: str, seen: dict[str, tuple[Any, bool]]) -> str:
        if name in self._names or (name.count(".") <= _DEEPEST and self._found(name, seen)[1]):
            return name
        for target, known in self._names.items():
            if known == name:
                return target
        cls = type(self)
        target = next(t for n in range(len(self._names), 10**9) if not hasattr(self, t := f"_part{n}"))
        cls._names = {**self._names, target: name}
        setattr(cls, target, property(lambda module: attribute(module, name)))
        return target

    def _found(self, name: str, seen: dict[str, tuple[Any, bool]]) -> tuple[Any, bool]:
        """The part of a true name, and whether generated code finds it by that; ``seen``: the answers so far."""
        if name not in seen:
            parent, dot, leaf = name.rpartition(".")
            holder, plain = self._found(parent, seen) if dot else (self, True)
            table = next((table for table in _tables(holder) if leaf in table), None)
            if table is not None:  # an attribute of that name hides it
                own = leaf in vars(holder) or hasattr(type(holder), leaf)
                plain = plain and not own and not (holder is self and leaf in _own_names())
            seen[name] = None if table is None else table[leaf], plain and _is_word(leaf)
        return seen[name]

    def __deepcopy__(self, memo: dict[int, Any]) -> PartsModule:
        twin = PartsModule(copied_parts(self, memo), self.with_names(self.graph), type(self).__name__)
        vars(twin)["_non_persistent_buffers_set"] = set(self._non_persistent_buffers_set)
        twin.training, twin.meta = self.training, copy.deepcopy(self.meta, memo)
        return twin

    def with_names(self, graph: fx.Graph) -> fx.Graph:
        """A copy of one of this module's graphs, with true names as targets."""
        twin = copied_graph(graph)
        for node in twin.nodes:
            if node.op in ("call_module", "get_attr"):
                node.target = self.name_of(node.target)
        return twin


def new_node(graph: fx.Graph, op: str, target: Any, args: Any, kwargs: Any, name: str | None = None) -> fx.Node:
    """As ``graph.create_node``, without its checks of every nested argument, which no caller here needs."""
    node = graph.create_node(op, target, None, None, name)
    node._update_args_kwargs(args, kwargs)
    return node


def copied_parts(module: nn.Module, memo: dict[int, Any]) -> dict[str, Any]:
    """Deep copies of a module's own parts, by name."""
    held = ((name, part) for table in _tables(module) for name, part in table.items() if part is not None)
    return {name: copy.deepcopy(part, memo) for name, part in held}


def copied_graph(graph: fx.Graph) -> fx.Graph:
    """A copy that prints itself as the original does."""
    twin = fx.Graph()
    twin.output(twin.graph_copy(graph, {}))
    twin._codegen = graph._codegen
    return twin
