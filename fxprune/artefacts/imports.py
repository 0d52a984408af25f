"""Classes and functions that a saved network needs from elsewhere, written as ``module:qualified.name``.

Saving checks that the name leads back to the object. Loading imports nothing that the caller has not named.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from fxprune.errors import ArtefactError

__all__ = ["TRUSTED", "import_path", "resolve_imports"]

# Containers have no behaviour of their own but calling what they hold.
TRUSTED = {
    f"{kind.__module__}:{kind.__qualname__}": kind
    for kind in (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
}


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


def resolve_imports(wanted: Iterable[str], allow: Iterable[Any]) -> dict[str, Any]:
    """What each import path leads to, with the containers of torch; nothing is imported unless all are allowed.

    ``allow`` holds import paths (``module:name`` or ``module.name``), or the classes and functions themselves.

    Raises:
        ArtefactError: one is not allowed, or cannot be imported.
    """
    found: dict[str, Any] = dict(TRUSTED)
    allowed = _allowed(allow)
    missing = [path for path in wanted if path not in found and path not in allowed]
    if missing:
        listed = ", ".join(repr(path) for path in missing)
        raise ArtefactError(
            f"it needs code from outside torch, which loading imports only where you name it: if you trust that code, "
            f"pass allow=[{listed}]"
        )
    for path in wanted:
        if path not in found:
            found[path] = allowed[path] if allowed[path] is not None else _imported(path)
    return found


def _allowed(allow: Iterable[Any]) -> Mapping[str, Any]:
    if isinstance(allow, str):
        allow = [allow]
    named: dict[str, Any] = {}
    for item in allow:
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
