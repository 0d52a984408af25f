"""Attributes of modules from outside torch as Python source, and the imports that they need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from fxprune.artefacts.source_constants import ConstantTable, literal_source
from fxprune.artefacts.source_layout import call, quoted
from fxprune.artefacts.values import decode

__all__ = ["RESTORED", "RESTORED_OBJECT", "StateSource"]

RESTORED = '''
def restored(kind: type, /, **modules: nn.Module) -> nn.Module:
    """A module made without its constructor, with the submodules that it had."""
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    module._modules.update(modules)
    return module
'''
RESTORED_OBJECT = '''
def restored_object(kind: type, attributes: dict) -> object:
    """An object made without its constructor, with the attributes that it had."""
    made = object.__new__(kind)
    vars(made).update(attributes)
    return made
'''


class StateSource:
    """Prints what :class:`fxprune.artefacts.states.StateWriter` wrote.

    ``access`` gives the expression that reaches a module; ``tensors`` the tensors by name.
    """

    def __init__(
        self, access: Callable[[str], str], tensors: Mapping[str, torch.Tensor], constants: ConstantTable
    ) -> None:
        self._access = access
        self._tensors = tensors
        self._constants = constants
        self._names: dict[str, str] = {}
        self._kinds: dict[str, Callable[[Any], str]] = {
            "tuple": self._tuple,
            "set": lambda items: f"set({self.expression(items)})",
            "frozenset": lambda items: f"frozenset({self.expression(items)})",
            "dict": lambda pairs: f"{{{', '.join(': '.join(map(self.expression, pair)) for pair in pairs)}}}",
            "member": lambda parts: f"{self.name(parts[0])}.{parts[1]}",
            "partial": lambda parts: f"functools.partial({self._partial(*parts)})",
            "module": access,
            "tensor": lambda name: constants.expression(self._tensors[name]),
            "function": lambda name: str(name).removeprefix("builtins."),
            "import": self.name,
            "object": lambda parts: f"restored_object({self.name(parts[0])}, {self.attributes(parts[1])})",
        }

    def name(self, path: str) -> str:
        """The name under which a class or function is imported."""
        last = path.rpartition(":")[2].replace(".", "_")
        if path not in self._names:
            taken = {*self._names.values(), "Model", "restored", "restored_object", "named", "part", "torch", "nn", "F"}
            candidates = [last, *(f"{last}_{i}" for i in range(2, len(taken) + 3))]
            self._names[path] = next(name for name in candidates if name not in taken)
        return self._names[path]

    def imports(self) -> list[str]:
        """The import statements of everything that was named so far."""
        named: dict[str, list[str]] = {}
        nested = []
        for path, name in sorted(self._names.items()):
            module, _, qualified = path.partition(":")
            outer, _, inner = qualified.partition(".")
            nested += [f"{name} = {qualified}"] if inner else []
            named.setdefault(module, []).append(outer if inner or outer == name else f"{outer} as {name}")
        lines = [call(f"from {module} import ", list(dict.fromkeys(n)), 0, "") for module, n in named.items()]
        return lines + nested

    def attributes(self, state: Mapping[str, Any]) -> str:
        """A dictionary display of attributes by name."""
        return f"{{{', '.join(self.items(state))}}}"

    def items(self, state: Mapping[str, Any]) -> list[str]:
        """The entries of that display."""
        return [f"{quoted(name)}: {self.expression(value)}" for name, value in state.items()]

    def expression(self, data: Any) -> str:
        """An expression that makes one value."""
        if isinstance(data, list):
            return f"[{', '.join(self.expression(item) for item in data)}]"
        if isinstance(data, dict) and len(data) == 1:
            ((kind, content),) = data.items()
            if kind in self._kinds:
                return self._kinds[kind](content)
        return literal_source(decode(data, {}))

    def _tuple(self, items: list[Any]) -> str:
        return f"({', '.join(map(self.expression, items))}{',' if len(items) == 1 else ''})"

    def _partial(self, function: Any, args: Any, kwargs: Any) -> str:
        parts = [self.expression(function), f"*{self.expression(args)}"]
        return ", ".join([*parts, f"**{self.expression(kwargs)}"])
