"""Containers of a class of their own among arguments and outputs, written down as calls that build them again."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError

Convert = Callable[[Any], Any]
Construction = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def construction(value: Any, convert: Convert) -> Construction | None:
    """Class and arguments that make ``value`` again, its contents converted; None for what is no such container.

    Raises:
        CaptureError: an object that hides tensors in its attributes.
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
    _refuse_hidden_tensors(value)
    return None


def _refuse_hidden_tensors(value: Any) -> None:
    if isinstance(value, (type, torch.nn.Module)):
        return
    if pytree.tree_any(lambda leaf: isinstance(leaf, torch.Tensor), getattr(value, "__dict__", None)):
        raise CaptureError(
            f"an object of class {type(value).__qualname__} holds tensors, and a graph cannot build it: "
            "give tensors in tuples, lists, dicts, named tuples or dataclasses"
        )
