"""Registries of things by name: the modules of a package register them, and are imported at the first look-up.

>>> colours = Registry("colour", "fxprune.util", KeyError)
>>> @colours("red")
... class Red:
...     pass
>>> colours["red"] is Red
True
>>> colours.unknown("reed")
"unknown colour 'reed'; choose one of red (did you mean 'red'?)"
"""

from __future__ import annotations

import difflib
import gc
import importlib
import importlib.util
import pkgutil
import random
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, ClassVar, Generic, TypeVar

T = TypeVar("T")
Kind = TypeVar("Kind")


class Named:
    """A registered class; its attribute ``name`` is the name it is registered under."""

    name: ClassVar[str]


class Registry(Generic[T]):
    """A table of makers by name. Calling it with a name gives a decorator that registers a class or function.

    Args:
        kind: the kind of thing, for messages.
        package: the package whose modules register them.
        error: the error for a name that is not registered.
        words: other common words, each with the registered name to suggest for it.
    """

    def __init__(
        self, kind: str, package: str, error: type[Exception], words: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self._kind, self._package, self._error, self._words = kind, package, error, words
        self._made: dict[str, Callable[..., T]] = {}
        self._complete = False

    def __call__(self, name: str, **options: Any) -> Callable[[Kind], Kind]:
        """Register a class or a function under a name; it is always called with ``options``."""

        def register(made: Any) -> Any:
            if isinstance(made, type) and "name" not in vars(made):
                made.name = name  # type: ignore[attr-defined]
            self._made[name] = (lambda **more: made(**{**options, **more})) if options else made
            return made

        return register

    def names(self) -> list[str]:
        """Every registered name, sorted."""
        return sorted(self._found())

    def __getitem__(self, name: str) -> Callable[..., T]:
        found = self._found()
        if name not in found:
            raise self._error(self.unknown(name))
        return found[name]

    def unknown(self, name: str) -> str:
        """The error message for a name that is not registered."""
        known = [self._words[name.lower()]] if name.lower() in self._words else []
        near = known or difflib.get_close_matches(name, self._made, n=1, cutoff=0.5)
        near = near or [n for n in self._made if name in n][:1]
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        return f"unknown {self._kind} {name!r}; choose one of {', '.join(sorted(self._made))}{hint}"

    def _found(self) -> Mapping[str, Callable[..., T]]:
        if not self._complete:
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self._package}.{module.name}")
            self._complete = True
        return self._made


def registered_names(package: str, decorator: str) -> tuple[str, ...]:
    """The names that a package registers with a decorator, sorted, read from its source without importing it.

    ``package`` is a folder of fxprune. Shell completion uses this, because importing torch would take too long.
    """
    folder = Path(__file__).parent.parent / package
    found = (
        re.findall(rf'(?m)^@{decorator}\("(\w+)"', file.read_text(encoding="utf-8")) for file in folder.glob("*.py")
    )
    return tuple(sorted(name for names in found for name in names))


def find_lazily(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package that imports its names when asked; ``homes``: names by submodule."""
    home_of = {name: home for home, names in homes.items() for name in names}

    def getattr_(name: str) -> Any:
        if name in home_of:
            value = getattr(_imported(f"{package}.{home_of[name]}"), name)
        elif not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}") is not None:
            value = _imported(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    def dir_() -> list[str]:
        return sorted(home_of)

    return getattr_, dir_


def moved(old: str, new: str, names: Sequence[str]) -> None:
    """Keep these names of module ``new`` available under ``old``; ``new`` is imported when one is asked for."""
    module = ModuleType(old, f"Moved to {new}.")

    def getattr_(name: str) -> Any:
        if name not in names:  # some tools look up attributes on every module
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        return getattr(_imported(new), name)

    module.__spec__, module.__getattr__ = ModuleSpec(old, None), getattr_  # type: ignore[method-assign]
    sys.modules[old] = module


def _imported(name: str) -> ModuleType:
    """Import a module and restore the state of Python's random numbers, which some libraries draw at import.

    Garbage collection is off meanwhile: an import makes no garbage, and a search would take as long as the import.
    """
    state, collects = random.getstate(), gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        random.setstate(state)
        if collects:
            gc.enable()
