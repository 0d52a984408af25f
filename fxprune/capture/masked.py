"""``d[k] = e[k]`` under a mask, written as a ``where``, for which the number of entries does not matter."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError
from fxprune.rules.ops import writes_in_place

VALUES_DECIDE = "the size of a result depends on values (indexing with a mask, nonzero, unique or the like)"


class _Unknown:
    """A tensor whose number of entries depends on values: it answers no questions."""

    def __getattr__(self, name: str) -> NoReturn:
        raise CaptureError(VALUES_DECIDE)

    def __len__(self) -> NoReturn:
        raise CaptureError(VALUES_DECIDE)

    @classmethod
    def __torch_function__(cls, *call: Any) -> NoReturn:
        raise CaptureError(VALUES_DECIDE)


class Place(_Unknown):
    """The places where ``mask`` is True, along its dim ``number``; for an index with those of all dims."""

    def __init__(self, mask: torch.Tensor, number: int) -> None:
        vars(self).update(_mask=mask, _number=number, _version=mask._version)


def asks_places(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call is ``where(mask)`` or ``nonzero(mask, as_tuple=True)``."""
    as_tuple = kwargs == {"as_tuple": True} if name == "nonzero" else name == "where" and not kwargs
    return as_tuple and len(args) == 1 and isinstance(args[0], torch.Tensor) and args[0].is_meta and args[0].dim() > 0


def places(mask: torch.Tensor) -> tuple[Place, ...]:
    """The result of such a call."""
    mask = mask if mask.dtype == torch.bool else mask != 0
    return tuple(Place(mask, number) for number in range(mask.dim()))


def as_mask(index: Any) -> Any:
    """The mask whose places make up an index; any other index as it is."""
    items = index if isinstance(index, tuple) else (index,)
    if not items or not all(type(item) is Place for item in items):
        return index
    told = [vars(item) for item in items]
    mask: torch.Tensor = told[0]["_mask"]
    if [t["_number"] for t in told] != list(range(mask.dim())) or any(t["_mask"] is not mask for t in told):
        raise CaptureError(VALUES_DECIDE)
    if mask._version != told[0]["_version"]:
        raise CaptureError(VALUES_DECIDE)
    return mask


class Picked(_Unknown):
    """The entries of ``whole`` under ``mask``, in unknown number; ``node_of`` recognises equal masks."""

    _whole: torch.Tensor
    _mask: torch.Tensor
    _node_of: Callable[[torch.Tensor], fx.Node]
    _versions: tuple[int, int]

    def __init__(self, whole: torch.Tensor, mask: torch.Tensor, node_of: Callable[[torch.Tensor], fx.Node]) -> None:
        vars(self).update(_whole=whole, _mask=mask, _node_of=node_of, _versions=(whole._version, mask._version))

    def __neg__(self) -> Picked:
        return self._made(-self.values(self._mask))

    def values(self, mask: torch.Tensor) -> torch.Tensor:
        """The whole tensor, if ``mask`` is the one that picked and neither has been written to since."""
        written = (self._whole._version, self._mask._version) != self._versions
        if written or not (mask is self._mask or are_one(self._node_of(self._mask), self._node_of(mask))):
            raise CaptureError(VALUES_DECIDE)
        return self._whole

    def _made(self, whole: torch.Tensor) -> Picked:
        return Picked(whole, self._mask, self._node_of)


def are_one(first: fx.Node, second: fx.Node) -> bool:
    """Whether two nodes compute the same: the same op on the same operands, with no write in between."""
    if (first.target, first.args, first.kwargs) != (second.target, second.args, second.kwargs):
        return False
    node = first
    while node is not second and node.op != "root":
        if node.op.startswith("call_") and writes_in_place(node):
            return False
        node = node.next
    return node is second


_SUMS = (operator.add, operator.sub)


def _with_number(function: Callable[[Any, Any], Any], swapped: bool = False) -> Callable[[Picked, Any], Picked]:
    """Apply an operator to picked entries and a number, or add two: the same for each entry, with finite gradients."""

    def apply(self: Picked, other: Any) -> Picked:
        if isinstance(other, Picked) and function in _SUMS:
            other = other.values(self._mask)
        elif not isinstance(other, (int, float)):
            raise CaptureError(VALUES_DECIDE)
        whole = self.values(self._mask)
        return self._made(function(other, whole) if swapped else function(whole, other))

    return apply


for _name in ("add", "sub", "mul", "truediv"):
    for _form in (f"__{_name}__", f"__i{_name}__"):
        setattr(Picked, _form, _with_number(getattr(operator, _name)))
    if _name != "truediv":  # what is divided by may be zero where the mask is False
        setattr(Picked, f"__r{_name}__", _with_number(getattr(operator, _name), swapped=True))


def refuse(value: Any) -> None:
    """Raise CaptureError if a module returns something of unknown length."""
    if any(isinstance(leaf, _Unknown) for leaf in pytree.tree_leaves(value)):
        raise CaptureError(VALUES_DECIDE)


def indexed(name: str, args: tuple[Any, ...], node_of: Callable[[torch.Tensor], fx.Node]) -> tuple[bool, Any]:
    """Whether an indexing call reads under a mask over first dims, or writes such entries; and its result."""
    if name == "__setitem__" and isinstance(args[2], Picked):
        whole = args[2].values(args[1])
        if (whole.shape, whole.dtype) != (args[0].shape, args[0].dtype):
            raise CaptureError(VALUES_DECIDE)
        written(args[0], args[1], whole)
        return True, None
    if name == "__setitem__" and _is_one_for_all(*args):
        written(*args)
        return True, None
    index = args[1] if name == "__getitem__" else None
    if not isinstance(index, torch.Tensor) or index.dtype != torch.bool or not index.dim() or not index.is_meta:
        return False, None
    with torch._C.DisableTorchFunction():  # other sizes are refused by the op itself
        fits = args[0].shape[: index.dim()] == index.shape
    return fits, Picked(args[0], index, node_of) if fits else None


def written(tensor: torch.Tensor, mask: torch.Tensor, value: torch.Tensor) -> None:
    """Write ``tensor[mask] = value`` as a ``where``, for a value of each entry or one for all entries."""
    for _ in range(tensor.dim() - mask.dim()):
        mask = mask.unsqueeze(-1)
    tensor.copy_(torch.where(mask, value, tensor))


def _is_one_for_all(tensor: Any, mask: Any, value: Any) -> bool:
    """Whether a value, such as a mask token, is written at each place of a mask over first dims of a tensor."""
    if not all(isinstance(given, torch.Tensor) and given.dim() for given in (tensor, mask, value)):
        return False
    with torch._C.DisableTorchFunction():
        fits = tensor.is_meta and mask.is_meta and mask.dtype == torch.bool and value.dtype == tensor.dtype
        fits = fits and tensor.shape[: mask.dim()] == mask.shape and value.dim() <= tensor.dim() - mask.dim()
        return bool(fits) and value.shape == tensor.shape[tensor.dim() - value.dim() :]
