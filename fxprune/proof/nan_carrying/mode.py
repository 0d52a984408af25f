"""The dispatch mode under which removed entries, written as NaN, propagate with the values."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.errors import ProofError
from fxprune.proof.nan_carrying.calls import Handler, OperatorCall, carries, tensors_among
from fxprune.proof.nan_carrying.contractions import CONTRACTIONS
from fxprune.proof.nan_carrying.convolutions import CONVOLUTIONS, WINDOWS
from fxprune.proof.nan_carrying.pointwise import Shadows, is_pointwise, keeps_nan, marked_again
from fxprune.proof.nan_carrying.reductions import NORMALIZATIONS, REDUCTIONS, counted, is_counting
from fxprune.proof.nan_carrying.structural import JOINING, is_structural, is_unwritten, moved

_HANDLERS: dict[str, Handler] = {**CONTRACTIONS, **CONVOLUTIONS, **JOINING, **NORMALIZATIONS, **REDUCTIONS, **WINDOWS}


class NanCarrying(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Evaluates a network with NaN for its removed entries as if it were the narrower network.

    Pointwise operators and moves propagate NaN; contractions, reductions and norms run over the kept entries. An
    operator outside the tables runs only on tensors without removed entries. Raises ProofError: operands of a
    contraction lost different positions, or an operator outside the tables reads a removed one.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._shadows = Shadows()

    def __torch_dispatch__(
        self, func: torch._ops.OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.empty_like.default:
            func = torch.ops.aten.zeros_like.default
        if keeps_nan(func):
            return func(*args, **kwargs)
        if is_structural(func):
            return moved(func, args, kwargs, self._shadows)
        if is_counting(func, args):
            return counted(func, args, kwargs, self._shadows)
        if is_unwritten(func):
            return func(*args, **kwargs).zero_()
        if is_pointwise(func):
            return marked_again(func, args, kwargs, self._shadows)
        if not any(carries(tensor) for tensor in tensors_among(args, kwargs)):
            return func(*args, **kwargs)
        return _handled(func, args, kwargs)


def _handled(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    handler, in_place = _handler(func)
    if handler is None:
        raise ProofError(
            f"{func} meets removed positions, and how they pass through it is unknown: the proof cannot speak for it"
        )
    result = handler(OperatorCall(func, args, kwargs))
    return args[0].copy_(result) if in_place else _laid_out(result, func, args, kwargs)


def _laid_out(result: Any, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result in the memory format of the operator's own result, which the network may query."""
    try:
        given = func(*_on_meta(args), **_on_meta(kwargs))
    except (NotImplementedError, RuntimeError):  # not every operator runs on the meta device
        return result
    return pytree.tree_map(_like, result, given)


def _on_meta(tree: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), tree)


def _like(result: Any, given: Any) -> Any:
    both = isinstance(result, torch.Tensor) and isinstance(given, torch.Tensor) and result.shape == given.shape
    if not both or result.stride() == given.stride():
        return result
    return torch.empty_strided(given.shape, given.stride(), dtype=result.dtype, device=result.device).copy_(result)


@functools.cache
def _handler(func: torch._ops.OpOverload) -> tuple[Handler | None, bool]:
    """The handler of the operator, and whether it writes its result into its first argument."""
    if any(argument.is_out for argument in func._schema.arguments):
        return None, False
    name = func._schema.name.split("::")[-1]
    in_place = name.endswith("_") and func._schema.is_mutable
    return _HANDLERS.get(name.removesuffix("_") if in_place else name), in_place
