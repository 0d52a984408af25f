"""Whether data from a file have the types that a report's rows declare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

__all__ = ["check_types"]

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
    """Compare the fields of dataclass instances with their annotations; what is of a class of its own is left out.

    Raises:
        TypeError: a field is of another type.
    """
    for row in rows:
        for field in fields(row):
            value = getattr(row, field.name)
            if not _fits(value, str(field.type)):
                raise TypeError(f"{type(row).__name__}.{field.name} cannot be {value!r:.40}")


def _fits(value: Any, annotation: str) -> bool:
    return any(_fits_one(value, choice) for choice in annotation.split(" | "))


def _fits_one(value: Any, annotation: str) -> bool:
    name, _, inside = annotation.rstrip("]").partition("[")
    kinds = _KINDS.get(name)
    if kinds is None:
        return True
    if isinstance(value, bool) and bool not in kinds:
        return False
    of_what = inside.split(", ")[-1 if name == "Mapping" else 0]
    return isinstance(value, kinds) and all(_fits_one(held, of_what) for held in _held(value))


def _held(value: Any) -> list[Any]:
    """What a container holds; a mapping's keys are names whatever they are."""
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, (tuple, list)) else []
