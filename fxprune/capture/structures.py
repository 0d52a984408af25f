"""Containers of a class of their own among arguments and outputs, written down as calls that make them again."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from fxprune.capture.objects import copied_object

Convert = Callable[[Any], Any]
_PLAIN = (list, tuple, dict, str, int, float, bool, type(None))
Construction = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def construction(value: Any, convert: Convert) -> Construction | None:
    """Class and arguments that make ``value`` again, its contents converted; None for what is no such container.

    Raises:
        CaptureError: an object that holds tensors and cannot be copied.
    """
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value), tuple(convert(v) for v in value), {}
    if type(value) is OrderedDict:
        return OrderedDict, ([(k, convert(v)) for k, v in value.items()],), {}
    if isinstance(value, dict) and type(value) is not dict:
        return type(value), (), {k: convert(v) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value) if f.init]
        return type(value), (), {name: convert(getattr(value, name)) for name in names}
    if isinstance(value, (*_PLAIN, type, torch.nn.Module)) or (copied := copied_object(value)) is None:
        return None
    make, held = copied
    return make, tuple(convert(v) for v in held), {}
