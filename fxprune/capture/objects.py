"""Objects of user classes that hold tensors, such as caches: a graph rebuilds them by copying."""

from __future__ import annotations

import copy
import dataclasses
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from fxprune.capture.numbers import Traced
from fxprune.errors import CaptureError

_DEPTH = 16


class Placeholder:
    """Stands for a tensor or number of the graph in the object that is copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Placeholder:
        return self


class CopiedObject:
    """Rebuilds an object when a graph calls it: a deep copy of ``skeleton`` with values for ``placeholders``."""

    def __init__(self, skeleton: Any, placeholders: tuple[Placeholder, ...]) -> None:
        self._skeleton = skeleton
        self._placeholders = placeholders
        self.__name__ = type(skeleton).__name__
        self.__qualname__ = type(skeleton).__qualname__
        self.__module__ = type(skeleton).__module__

    def __call__(self, *values: Any) -> Any:
        memo: dict[int, Any] = {
            id(placeholder): value for placeholder, value in zip(self._placeholders, values, strict=True)
        }
        return copy.deepcopy(self._skeleton, memo)

    def __deepcopy__(self, memo: dict[int, Any]) -> CopiedObject:
        return self  # never changed, and shared like any function


def copied_object(value: Any) -> tuple[CopiedObject, tuple[Any, ...]] | None:
    """The callable that rebuilds ``value``, and its tensors and numbers; None if the object holds no tensor.

    Raises:
        CaptureError: the object cannot be copied.
    """
    held = {id(leaf): leaf for leaf in held_leaves(value)}
    if not any(isinstance(leaf, torch.Tensor) for leaf in held.values()):
        return None
    placeholders = {key: Placeholder() for key in held}
    try:
        skeleton = copy.deepcopy(value, dict(placeholders))
    except Exception as error:  # deepcopy runs the user's own code: it may raise anything
        raise CaptureError(
            f"an object of class {type(value).__qualname__} holds tensors and cannot be copied ({error}): "
            "give tensors in tuples, lists, dicts, named tuples or dataclasses"
        ) from error
    return CopiedObject(skeleton, tuple(placeholders.values())), tuple(held.values())


def held_leaves(value: Any, depth: int = _DEPTH) -> Iterator[Any]:
    """The tensors and traced numbers that an object holds, directly or through containers and other objects."""
    if isinstance(value, (torch.Tensor, *Traced)):
        yield value
    elif depth and not isinstance(value, (type, types.FunctionType, types.ModuleType, torch.nn.Module, str)):
        parts = list(value.values()) if isinstance(value, dict) else []
        parts += list(value) if isinstance(value, (list, tuple, set, frozenset)) else []
        for part in (*parts, *getattr(value, "__dict__", {}).values()):
            yield from held_leaves(part, depth - 1)


Convert = Callable[[Any], Any]
_PLAIN = (list, tuple, dict, str, int, float, bool, type(None))
Construction = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def construction(value: Any, convert: Convert) -> Construction | None:
    """Class and converted arguments to rebuild a container, or None. Raises CaptureError: it cannot be copied."""
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


class SharedTensors:
    """The values of the tensors that a model's code shares with the rest of the process, in globals or containers.

    ``holders``: what holds values, each in words; ``items``: the keys of a holder with what it holds there.
    """

    def __init__(self, holders: list[tuple[str, Any]], items: Callable[[Any], list[tuple[Any, Any]]]) -> None:
        self._items = items
        held = ((words, holder, [(k, v) for k, v in items(holder) if is_dense(v)]) for words, holder in holders)
        self._held = [
            (words, holder, {k: (v, v.detach().clone()) for k, v in all_}) for words, holder, all_ in held if all_
        ]

    def changed(self) -> Iterator[tuple[str, Any]]:
        """Where another tensor, or other values, are now: words and key. What was removed is a cache."""
        for words, holder, before in self._held:
            now = dict(self._items(holder))
            for key, (_, values) in before.items():
                if isinstance(now.get(key), torch.Tensor) and not is_same(now[key], values):
                    yield words, key

    def restore(self) -> None:
        """Write the earlier values back into the tensors that were held."""
        write_back([pair for _, _, before in self._held for pair in before.values()])


def write_back(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Write values back into tensors, the last pair first."""
    for tensor, values in reversed(pairs):
        if not is_same(tensor, values):
            with torch.no_grad():
                tensor.copy_(values)


def is_dense(value: Any) -> bool:
    """Whether a value is a tensor whose values can be compared, and written back."""
    dense = isinstance(value, torch.Tensor) and value.layout is torch.strided and not value.is_quantized
    return dense and not value.is_meta and not value.is_inference()


def is_same(tensor: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether a tensor has these values, shape and dtype to the bit, NaN included."""
    with torch._C.DisableTorchFunction():  # it is no question of the forward
        if tensor.is_meta or (tensor.shape, tensor.dtype, tensor.device) != (values.shape, values.dtype, values.device):
            return False
        return torch.equal(_bits(tensor), _bits(values))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
