"""Names of a package that are imported when they are first asked for (PEP 562)."""

from __future__ import annotations

import importlib
import importlib.util
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any


def find_lazily(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package; the latter lists the names that are given here alone.

    Args:
        package: its name.
        homes: by submodule the names that are the package's too.
    """
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


def _imported(name: str) -> ModuleType:
    """Import with Python's random numbers left where they were: some libraries draw of them while they are imported."""
    state = random.getstate()
    try:
        return importlib.import_module(name)
    finally:
        random.setstate(state)
