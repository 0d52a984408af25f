"""Classes of a library's own that a network's outputs are: written as import paths, imported only where allowed."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from fxprune.artefacts.imports import import_path
from fxprune.errors import ArtefactError

__all__ = ["container_path", "decode_container", "encode_container", "is_container_class"]

_ROLE = "the class of an output"


def is_container_class(target: Any) -> bool:
    """Whether a call target is a dataclass, or a dict of its own class, which a graph makes to hold tensors."""
    if not isinstance(target, type) or target in (dict, OrderedDict):
        return False
    return dataclasses.is_dataclass(target) or issubclass(target, dict)


def container_path(target: Any) -> str:
    """The import path of such a class.

    Raises:
        ArtefactError: it cannot be imported by its name.
    """
    return import_path(target, _ROLE)


def encode_container(target: Any, need: Callable[[Any, str], str]) -> dict[str, Any] | None:
    """Such a class as JSON data, or None for any other target; ``need`` notes what loading has to import."""
    return {"import": need(target, _ROLE)} if is_container_class(target) else None


def decode_container(data: Any, found: Mapping[str, Any]) -> type | None:
    """The class that was written, or None for what is no class; ``found`` is what the allowed paths lead to.

    Raises:
        ArtefactError: the path is not among them, or leads to something else.
    """
    if not isinstance(data, dict) or set(data) != {"import"}:
        return None
    path = data["import"]
    kind = found.get(path) if isinstance(path, str) else None
    if not is_container_class(kind):
        raise ArtefactError(f"the graph makes a {path!r:.80}, which is no class of outputs that its imports list")
    assert isinstance(kind, type)
    return kind
