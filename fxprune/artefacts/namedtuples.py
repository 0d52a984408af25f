"""Named tuples that a network returns: name and fields are data, so that the original's library is not needed."""

from __future__ import annotations

from collections import namedtuple
from functools import cache
from typing import Any

from torch.nn.utils.rnn import PackedSequence

from fxprune.artefacts.targets import check_identifier
from fxprune.errors import ArtefactError

__all__ = ["decode_namedtuple", "encode_namedtuple", "is_namedtuple"]


def is_namedtuple(target: Any) -> bool:
    """Whether a call target is a class made by ``collections.namedtuple`` or ``typing.NamedTuple``, not torch's own."""
    if target is PackedSequence:  # layers know it by its class
        return False
    return isinstance(target, type) and issubclass(target, tuple) and hasattr(target, "_fields")


def encode_namedtuple(target: Any) -> dict[str, Any] | None:
    """Name and fields of a named tuple class as JSON data, or None for any other target."""
    return {"namedtuple": [target.__name__, *target._fields]} if is_namedtuple(target) else None


def decode_namedtuple(data: dict[str, Any]) -> type:
    """A named tuple class with the name and fields that were written.

    Raises:
        ArtefactError: they are no names, or are not distinct.
    """
    if set(data) != {"namedtuple"} or not isinstance(data["namedtuple"], list) or not data["namedtuple"]:
        raise ArtefactError(f"the graph calls {data!r:.80}, which is no named tuple")
    name, *fields = (check_identifier(text, "named tuple or its field") for text in data["namedtuple"])
    return _make(name, tuple(fields))


@cache
def _make(name: str, fields: tuple[str, ...]) -> type:
    try:
        return namedtuple(name, fields)
    except ValueError as error:
        raise ArtefactError(f"the graph returns an impossible named tuple: {error}") from error
