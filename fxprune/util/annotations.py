"""Checks that data read from a file into dataclasses fits their annotations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

_LARGEST = 1 << 256  # far above any count; quotients of larger integers may overflow a float
_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int, float),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "None": (type(None),),
    "tuple": (tuple, list),
    "Mapping": (Mapping,),
}


def check_types(rows: Iterable[Any]) -> None:
    """Compare fields with annotations of built-in types. Raises TypeError: a field has a value of another type."""
    for row in rows:
        for column in fields(row):
            value = getattr(row, column.name)
            if not _fits(value, str(column.type)):
                raise TypeError(f"{type(row).__name__}.{column.name} cannot be {value!r:.40}")


def _fits(value: Any, annotation: str) -> bool:
    return any(_fits_one(value, choice) for choice in annotation.split(" | "))


def _fits_one(value: Any, annotation: str) -> bool:
    name, _, inside = annotation.rstrip("]").partition("[")
    kinds = _KINDS.get(name)
    if kinds is None:
        return True
    if isinstance(value, bool) and bool not in kinds:
        return False
    if isinstance(value, int) and abs(value) >= _LARGEST:
        return False
    parts = inside.split(", ")
    of_what = parts[-1 if name == "Mapping" else 0]
    if name == "tuple" and parts[-1] != "..." and "[" not in inside and len(_held(value)) != len(parts):
        return False
    return isinstance(value, kinds) and all(_fits_one(held, of_what) for held in _held(value))


def _held(value: Any) -> list[Any]:
    """The items of a container, or the values of a mapping; the keys of a mapping are not checked."""
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, (tuple, list)) else []
