"""One operator call of the dispatcher with its arguments by name, and helpers for tensors with NaN marks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fxprune.errors import ProofError


class OperatorCall:
    """An aten operator with its arguments bound to the names of its schema."""

    def __init__(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.func = func
        self.values: dict[str, Any] = {}
        for position, argument in enumerate(func._schema.arguments):
            if position < len(args):
                self.values[argument.name] = args[position]
            elif argument.name in kwargs:
                self.values[argument.name] = kwargs[argument.name]
            elif argument.has_default_value():
                self.values[argument.name] = argument.default_value

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The argument of that name, or ``default`` if the overload has none or it is None."""
        value = self.values.get(name)
        return default if value is None else value

    def run(self, /, **replaced: Any) -> Any:
        """Run the operator with some arguments replaced, by name."""
        values = {**self.values, **replaced}
        arguments = self.func._schema.arguments
        args = [values[a.name] for a in arguments if not a.kwarg_only]
        kwargs = {a.name: values[a.name] for a in arguments if a.kwarg_only and a.name in values}
        return self.func(*args, **kwargs)

    def fault(self, reason: str) -> ProofError:
        """The error for a call that no narrower network can repeat."""
        return ProofError(f"{self.func}: {reason}")

    def mismatch(self, reason: str) -> ProofError:
        """The error for operands that lost different positions."""
        return PositionError(f"{self.func}: {reason}")


class PositionError(ProofError):
    """Operands of a contraction lost different positions: no narrower network pairs them as the original does."""


Handler = Callable[[OperatorCall], Any]


def words(text: str) -> frozenset[str]:
    """The names in ``text``, as a set for tables of operators."""
    return frozenset(text.split())


def tensors_among(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors among an operator's arguments, which nest no deeper than lists of tensors."""
    found: list[Tensor] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [item for item in value if isinstance(item, Tensor)]
    return found


def gone(tensor: Tensor) -> Tensor:
    """A mask of the removed entries, shape of ``tensor``; all False for integers and booleans."""
    return torch.isnan(tensor)


def carries(tensor: Tensor) -> bool:
    """Whether any entry is removed. A single sum is enough: NaN propagates through it."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    return bool(torch.isnan(unexpanded(tensor).sum()))


def unexpanded(tensor: Tensor) -> Tensor:
    """``tensor`` with size 1 along every dim of stride 0; it broadcasts to the same values."""
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dim] > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def filled(tensor: Tensor) -> Tensor:
    """``tensor`` with 0 for every removed entry; infinity stays."""
    if not carries(tensor):
        return tensor
    if tensor.is_complex():
        return tensor.masked_fill(gone(tensor), 0)
    return torch.nan_to_num(tensor, nan=0.0, posinf=math.inf, neginf=-math.inf)


def with_nan(tensor: Tensor, where: Tensor) -> Tensor:
    """``tensor`` with NaN written where ``where`` is True; a tensor that is not floating is returned unchanged."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    return tensor.masked_fill(where, float("nan"))


def constant_along(mask: Tensor, dims: Sequence[int]) -> bool:
    """Whether the boolean ``mask`` does not change along ``dims``."""
    if not dims or mask.numel() == 0:
        return True
    chosen = tuple(dims)
    return bool((mask.any(dim=chosen) == mask.all(dim=chosen)).all())


def trailing(tensor: Tensor, count: int) -> tuple[int, ...]:
    """The last ``count`` dims of ``tensor``."""
    return tuple(range(tensor.ndim - count, tensor.ndim))
