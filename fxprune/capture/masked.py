"""Masks: what makes two of them one, and ``d[k] = e[k]`` as a ``where``, whatever the number of entries."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxprune.capture.decisions import origin
from fxprune.capture.numbers import plain, size_of
from fxprune.errors import CaptureError
from fxprune.rules.ops import canonical_name, writes_in_place
from fxprune.rules.registry import bind

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


class Members(NamedTuple):
    """What a tensor that is never negative says of another one: where it is zero.

    Over the dims of ``of``, a mask, or numbers with one more dim, that of classes, which says where they are equal to
    each class. ``picked``: dims at which one index is picked. ``dims``: those along which the tensor goes; along the
    others, its entries are zero just where all entries of the mask are.
    """

    of: fx.Node
    dims: tuple[int, ...]
    picked: frozenset[tuple[int, int]] = frozenset()

    def at(self, dim: int, number: int) -> Members:
        """The same with one index picked of a dim of the tensor, which is not made of several."""
        picked = self.picked | {(self.dims[dim], number)}
        return self._replace(dims=self.dims[:dim] + self.dims[dim + 1 :], picked=picked)


# The dim of classes, and dims that are inserted or made of several.
CLASSES, NEW = -1, -2
_KEEP = set(
    "gt ne ge bool long int float double to contiguous detach clone cpu getitem select unsqueeze permute".split()
)
_KEEP |= {
    "transpose",
    "movedim",
    "t",
    "mT",
    "flatten",
    "view",
    "reshape",
    "squeeze",
    "sum",
    "any",
    "count_nonzero",
    "amax",
}
_NUMBERS = {
    "view",
    "reshape",
    "flatten",
    "long",
    "int",
    "float",
    "double",
    "to",
    "contiguous",
    "detach",
    "clone",
    "cpu",
}
_NUMBERS |= {"squeeze", "unsqueeze", "permute", "transpose", "t"}
# In these no count becomes zero, and no number another one.
_WIDE = {torch.int32, torch.int64, torch.float32, torch.float64}
_PRIMES = (2, 3, 5, 7, 11, 13)
_COUNTS = {"bincount": "input, weights=None, minlength=0", "histc": "input, bins=100, min=0, max=0"}
_COUNTS["one_hot"] = "input, num_classes=-1"
# What gives numbers of the elements of a dim, in a tuple or alone, with the dim that it takes if none is given.
_ORDERS = {"topk": "input, k, dim=-1", "sort": "input, dim=-1", "max": "input, dim", "min": "input, dim"}
_ORDERS |= {"argsort": "input, dim=-1", "argmax": "input, dim", "argmin": "input, dim"}


def members(node: fx.Node, chain: list[fx.Node]) -> Members | None:
    """What a tensor says of a mask, or of numbers; ``chain`` takes the nodes in between. None: nothing is known."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or not node.op.startswith("call"):
        return None
    chain.append(node)
    name = canonical_name(node.target)
    given: Any = node.args[0] if node.args else None
    found = _of_numbers(node, name, given, chain)
    if found is None and name in _KEEP and isinstance(given, fx.Node) and value.dtype in (*_WIDE, torch.bool):
        before = len(chain)
        of = members(given, chain)
        found = None if of is None else _kept(node, name, given, of)
        if found is None:
            del chain[before:]
    is_mask = value.dtype == torch.bool or (name == "mul" and value.dtype in _WIDE and _are_counts(node.args, chain))
    return Members(node, tuple(range(value.dim()))) if found is None and is_mask else found


def _are_counts(factors: Any, chain: list[fx.Node]) -> bool:
    """Whether none of some factors is ever negative, as a mask times that of the capacity of an expert."""
    before = len(chain)
    known = [isinstance(factor, fx.Node) and members(factor, chain) is not None for factor in factors]
    if not all(known):
        del chain[before:]
    return all(known)


def _of_numbers(node: fx.Node, name: str, given: Any, chain: list[fx.Node]) -> Members | None:
    """Of a call that compares numbers with classes, or counts them."""
    if not isinstance(given, fx.Node) or not isinstance(given.meta.get("val"), torch.Tensor):
        return None
    number = _literal(node.args[1]) if name == "eq" and len(node.args) == 2 else None
    limits = bind(_COUNTS[name], node.args, node.kwargs) if name in _COUNTS else {}
    # Of counts in intervals, just one number must fall into each of them, and none beside.
    one_each = name == "histc" and type(limits["bins"]) is int and limits["bins"] > 1 and limits["min"] == 0
    counts = limits.get("weights", 0) is None or (one_each and limits["max"] == limits["bins"] - 1)
    if not counts and number is None and name != "one_hot":
        return None
    of, dims = numbers_of(given, chain), (CLASSES,)
    if not counts:
        places = range(given.meta["val"].dim()) if of is given else (NEW,) * given.meta["val"].dim()
        dims = (*places, CLASSES) if number is None else tuple(places)
    return None if of is None else Members(of, dims, frozenset() if number is None else frozenset({(CLASSES, number)}))


def _literal(value: Any) -> int | None:
    """A number that no data enters, also as a tensor that the forward made of one."""
    if isinstance(value, fx.Node):
        constant = value.meta.get("constant")
        value = constant.item() if constant is not None and constant.numel() == 1 else None
    return value if type(value) is int else None


def numbers_of(node: fx.Node, chain: list[fx.Node]) -> fx.Node | None:
    """The tensor of integers whose entries another one has, in any order."""
    chain.append(node)
    while node.op.startswith("call") and canonical_name(node.target) in _NUMBERS:
        given: Any = node.args[0]
        kept = node.meta["val"].dtype in (given.meta["val"].dtype, torch.int64, torch.float32, torch.float64)
        if not kept or (node.target == "view" and isinstance(node.args[1], torch.dtype)):
            break
        node = given
        chain.append(node)
    value = node.meta.get("val")
    is_integer = isinstance(value, torch.Tensor) and value.dtype in (torch.int32, torch.int64)
    return node if is_integer else None


def bound(numbers: fx.Node) -> Any:
    """How many elements a dim has that the entries of a tensor number; None if it is not known that they do."""
    name, given = canonical_name(numbers.target), numbers.args[0] if numbers.args else None
    if name == "getitem" and isinstance(given, fx.Node) and numbers.args[1] == 1:
        numbers, name = given, canonical_name(given.target)
    elif name in ("topk", "sort", "max", "min"):
        return None
    dim = bind(_ORDERS[name], numbers.args, numbers.kwargs).get("dim") if name in _ORDERS else None
    of: Any = numbers.args[0] if numbers.args else None
    if type(dim) is not int or not isinstance(of, fx.Node):
        return None
    dim = dim % (rank := of.meta["val"].dim())
    size, made = of.meta["val"].shape[dim], origin(of)
    is_width = dim == rank - 1 and "linear" in (str(made.meta.get("layer", "")).lower(), canonical_name(made.target))
    return size if is_width else size_of(of, dim, size)


def classes(chain: list[fx.Node], decide: Callable[..., None]) -> int | None:
    """How many classes an op tells apart that compares numbers with them, or counts them; None if data decide."""
    for node in chain:
        name = canonical_name(node.target)
        given = bind(_COUNTS[name], node.args, node.kwargs) if name in _COUNTS else {}
        if name in ("one_hot", "histc"):
            number = given["num_classes" if name == "one_hot" else "bins"]
            return number if type(number) is int and number > 0 else None
        if name == "bincount":
            numbers = numbers_of(node.args[0], [])  # type: ignore[arg-type]
            size, least = None if numbers is None else bound(numbers), given["minlength"]
            if size is None or type(least) is not int or plain(size) > least:
                return None
            decide(operator.le, (size, least))
            return least
    return None


def _kept(node: fx.Node, name: str, given: fx.Node, of: Members) -> Members | None:
    """The same of the result of an op on a tensor of which something is known."""
    value, known = node.meta["val"], given.meta["val"]
    if name in ("gt", "ne", "ge"):
        limit = (node.args[1:], name == "ge" and not known.dtype.is_floating_point)
        return of if limit in (((0,), False), ((1,), True)) and not isinstance(limit[0][0], bool) else None
    if name in ("sum", "any", "count_nonzero", "amax"):
        given_dims = bind("input, dim=None, keepdim=False", node.args, node.kwargs)
        dims = given_dims["dim"]
        dims = range(known.dim()) if dims is None or dims == () else [dims] if isinstance(dims, int) else dims
        gone = {dim % max(known.dim(), 1) for dim in dims}
        kept = (
            (NEW if dim in gone else d) for dim, d in enumerate(of.dims) if given_dims["keepdim"] or dim not in gone
        )
        return of._replace(dims=tuple(kept))
    if name in ("getitem", "select"):
        return _indexed(node, name, of)
    if name in ("view", "reshape", "flatten", "squeeze"):
        trails = name in ("view", "reshape") and node.args[-1:] == value.shape[-1:] == known.shape[-1:] != ()
        last = of.dims[-1:] if trails else ()
        return of._replace(dims=(NEW,) * (value.dim() - len(last)) + last)
    if name in ("unsqueeze", "permute", "transpose", "movedim", "t", "mT"):
        return _moved(node, of)
    return of


def _indexed(node: fx.Node, name: str, of: Members) -> Members | None:
    """Of one index of one dim, the others whole."""
    if name == "select":
        given = bind("input, dim, index", node.args, node.kwargs)
        dim, number = given["dim"], given["index"]
    else:
        index: Any = node.args[1]
        parts = index if isinstance(index, tuple) else (index,)
        if len(parts) == 1 and isinstance(parts[0], fx.Node) and parts[0].meta["val"].shape == (1,):
            number = _literal(parts[0])
            if number is None or number < 0 or of.dims[0] == NEW:
                return None
            picked = of.at(0, number)
            return picked._replace(dims=(NEW, *picked.dims))
        places = [place for place, part in enumerate(parts) if type(part) is int]
        rest = [part for part in parts if type(part) is not int]
        if len(places) != 1 or any(part not in (slice(None), ...) for part in rest):
            return None
        dim, number = places[0], parts[places[0]]
        dim -= len(parts) if ... in parts[:dim] else 0
    if type(dim) is not int or type(number) is not int or number < 0 or of.dims[dim] == NEW:
        return None
    return of.at(dim % len(of.dims), number)


def _moved(node: fx.Node, of: Members) -> Members | None:
    """Of an op that puts dims at other places, as it does with those of a tensor of different sizes."""
    if len(of.dims) > len(_PRIMES) or any(
        isinstance(value, fx.Node) for value in (*node.args[1:], *node.kwargs.values())
    ):
        return None
    sizes = torch.empty(_PRIMES[: len(of.dims)], device="meta")
    with torch._C.DisableTorchFunction():
        function: Any = node.target if node.op == "call_function" else getattr(torch.Tensor, str(node.target))
        moved = function(sizes, *node.args[1:], **node.kwargs).shape
    return of._replace(dims=tuple(NEW if size == 1 else of.dims[_PRIMES.index(size)] for size in moved))


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
