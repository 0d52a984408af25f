"""Laws of ops that only move entries: transposes, views, slices and concatenations, by arithmetic on indices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from fxprune.proof.nodes.claims import Claim, Kept, at, cut_shape, every, same_kept
from fxprune.proof.nodes.laws.reading import Piece, Reading, Verdict, on_meta, widest
from fxprune.proof.nodes.pairs import call_name

_BY_DIMS = frozenset("flatten unflatten squeeze unsqueeze".split())


def permuted(reading: Reading) -> Verdict | None:
    """Dims permuted, or the value unchanged."""
    given = reading.tensor()
    if given is None or given.shape is None or not reading.same:
        return None
    # No two sizes are equal, so the result's sizes show where each dim went.
    moved = reading.tried(lambda claim: on_meta(range(2, 2 + len(claim.shape or ()))))
    if not isinstance(moved, Tensor) or sorted(moved.shape) != list(range(2, 2 + len(given.shape))):
        return None
    order = [size - 2 for size in moved.shape]
    if not all(same_kept(at(given.kept, dim), at(reading.kept, place)) for place, dim in enumerate(order)):
        return None
    shares = call_name(reading.node) != "clone"
    return Verdict([given.shape[dim] for dim in order], given.domain or "any", given.silent, shares=shares)


def viewed(reading: Reading, name: str) -> Verdict | None:
    """Another shape of the same memory: blocks of dims that correspond must keep the same entries."""
    given = reading.tensor()
    if given is None or given.shape is None:
        return None
    full = reading.tried(lambda claim: on_meta(claim.shape or ()))
    narrow = reading.tried_narrow(lambda claim: on_meta(cut_shape(claim.shape or (), claim.kept)))
    if not (isinstance(full, Tensor) and isinstance(narrow, Tensor)) or full.dtype != torch.float32:
        return None
    if tuple(narrow.shape) != cut_shape(full.shape, reading.kept):
        return None
    blocks = _blocks(given.shape, full.shape)
    if blocks is None or not all(_keeps_alike(given.shape, given.kept, full.shape, reading.kept, *b) for b in blocks):
        return None
    by_dims = reading.same and (name in _BY_DIMS or _leaves_rows(reading.node))
    return Verdict(tuple(full.shape), given.domain or "any", given.silent, shares=True, at_any_size=by_dims)


def _leaves_rows(node: Any) -> bool:
    """Whether a view flattens everything but the rows: ``x.view(x.size(0), -1)``."""
    shape = node.args[1] if len(node.args) == 2 else node.args[1:]
    rows = shape[0] if isinstance(shape, (tuple, list)) and len(shape) == 2 and shape[1] == -1 else None
    return call_name(rows) == "size" and rows.args == (node.args[0], 0) if isinstance(rows, Node) else False


def expanded(reading: Reading) -> Verdict | None:
    """Dims of size 1 and new dims are expanded; all others keep the same indices."""
    given = reading.tensor()
    if given is None or given.shape is None or not reading.same:
        return None
    full = reading.tried(lambda claim: on_meta(claim.shape or ()))
    narrow = reading.tried_narrow(lambda claim: on_meta(cut_shape(claim.shape or (), claim.kept)))
    if not (isinstance(full, Tensor) and isinstance(narrow, Tensor)):
        return None
    ahead = full.ndim - len(given.shape)
    for dim, size in enumerate(full.shape):
        stretched = dim < ahead or given.shape[dim - ahead] != size
        index = None if dim < ahead else at(given.kept, dim - ahead)
        if not same_kept(index, at(reading.kept, dim)) or (stretched and index is not None):
            return None
    if tuple(narrow.shape) != cut_shape(full.shape, reading.kept):
        return None
    return Verdict(tuple(full.shape), given.domain or "any", given.silent, shares=True)


def _blocks(one: Sequence[int], other: Sequence[int]) -> list[tuple[list[int], list[int]]] | None:
    """Blocks of neighbouring dims, without dims of size 1, with equally many entries in both shapes."""
    if math.prod(one) == 0:
        return None
    rest = [[dim for dim, size in enumerate(shape) if size != 1] for shape in (one, other)]
    found = []
    while rest[0]:
        left, right = [rest[0].pop(0)], [rest[1].pop(0)]
        sizes = [one[left[0]], other[right[0]]]
        while sizes[0] != sizes[1]:
            shorter = int(sizes[1] < sizes[0])
            dim = rest[shorter].pop(0)
            (left, right)[shorter].append(dim)
            sizes[shorter] *= (one, other)[shorter][dim]
        found.append((left, right))
    return found


def _keeps_alike(
    one: Sequence[int], kept: Kept, other: Sequence[int], kept_after: Kept, left: list[int], right: list[int]
) -> bool:
    before, after = [at(kept, dim) for dim in left], [at(kept_after, dim) for dim in right]
    if all(index is None for index in (*before, *after)):
        return True
    if len(left) == len(right) == 1:
        return same_kept(before[0], after[0])
    sides = [([one[d] for d in left], before), ([other[d] for d in right], after)]
    return torch.equal(*(_numbered(sizes, index) for sizes, index in sides))


def _numbered(sizes: Sequence[int], kept: Sequence[Tensor | None]) -> Tensor:
    """The flat indices of the entries that a block of dims keeps, in order."""
    numbers = torch.arange(math.prod(sizes)).view(list(sizes))
    for dim, index in enumerate(kept):
        if index is not None:
            numbers = numbers.index_select(dim, index.cpu())
    return numbers.flatten()


def sliced(reading: Reading) -> Verdict | None:
    """Slices, single entries and entries by index, along dims that keep everything."""
    if reading.operands and reading.operands[0].pieces:
        return piece(reading)
    given = reading.tensor(0, "self")
    if given is None or given.shape is None or len(reading.node.args) != 2:
        return None
    taken = _taken(reading, given)
    if taken is None or len(reading.kept) > len(taken.shape):
        return None
    if not all(same_kept(index, at(reading.kept, place)) for place, index in enumerate(taken.kept)):
        return None
    return Verdict(taken.shape, given.domain or "any", given.silent, shares=True)


def overwritten(reading: Reading) -> Verdict | None:
    """``x[index] = value``: the value must keep the same indices as the place that it is written to."""
    given, value = reading.tensor(0, "self"), reading.argument(2, "value")
    if given is None or given.shape is None or not given.domain or not reading.same or len(reading.node.args) != 3:
        return None
    taken = _taken(reading, given)
    if taken is None or any(isinstance(item, Claim) for item in _items(reading.known(reading.node.args[1]))):
        return None
    if not isinstance(value, Claim):
        literal = type(value) in (int, float) and math.isfinite(value)
        return Verdict(given.shape, "any", given.silent and value == 0) if literal else None
    own = value.shape
    if own is None or not value.is_float or len(own) > len(taken.shape):
        return None
    for place, size in enumerate(reversed(own), 1):
        index = None if size == 1 and taken.shape[-place] != 1 else at(taken.kept, len(taken.shape) - place)
        if size not in (1, taken.shape[-place]) or not same_kept(at(value.kept, len(own) - place), index):
            return None
    return Verdict(given.shape, widest([given, value]), given.silent and value.silent)


def _items(index: Any) -> tuple[Any, ...]:
    return tuple(index) if isinstance(index, (tuple, list)) else (index,)


def _taken(reading: Reading, given: Claim) -> Piece | None:
    """Shape and kept indices of an indexed tensor; None if the networks do not index alike, or it is unknown."""
    ndim = len(given.shape or ())
    ours, theirs = (_every_index(index, ndim) for index in (reading.node.args[1], reading.other.args[1]))
    if ours is None or map_arg(ours, reading.images.get) != theirs:
        return None
    index = tuple(map(reading.known, ours))
    dims = _dims_left(index, ndim)
    whole = {dim for dim, all_of_it in dims or () if all_of_it}
    if dims is None or any(at(given.kept, dim) is not None for dim in range(ndim) if dim not in whole):
        return None
    index = tuple(item.full.to("meta") if isinstance(item, Claim) else item for item in index)
    try:
        shape = tuple(on_meta(given.shape or ())[index].shape)
    except (IndexError, RuntimeError, TypeError, ValueError):
        return None
    kept = tuple(at(given.kept, dim) if dim in whole else None for dim, _ in dims)
    return Piece(shape, kept) if len(shape) == len(dims) else None


def _every_index(index: Any, ndim: int) -> tuple[Any, ...] | None:
    """The index with one item per dim and None for new dims; None if it is not of a known form."""
    items = tuple(index) if isinstance(index, (tuple, list)) else (index,)
    around = [n for n, item in enumerate(items) if item is Ellipsis]
    taken = sum(item is not None and item is not Ellipsis for item in items)
    if len(around) > 1 or taken > ndim or isinstance(index, list):
        return None
    place = around[0] if around else len(items)
    return (*items[:place], *[slice(None)] * (ndim - taken), *items[place + 1 :])


def _dims_left(index: Sequence[Any], ndim: int) -> list[tuple[int, bool]] | None:
    """For each dim of the result, the original dim, or -1, and whether all of that dim is taken."""
    if sum(isinstance(item, Claim) for item in index) > 1 or (
        any(isinstance(item, Claim) for item in index) and any(type(item) is int for item in index)
    ):
        return None
    found: list[tuple[int, bool]] = []
    dims = iter(range(ndim))
    for item in index:
        if item is None:
            found.append((-1, False))
        elif type(item) is slice:
            found.append((next(dims), item == slice(None)))
        elif type(item) is int:
            next(dims)
        elif isinstance(item, Claim) and item.shape is not None and item.is_whole and item.full.dtype == torch.int64:
            next(dims)
            found += [(-1, False)] * len(item.shape)
        else:
            return None
    return found


def concatenated(reading: Reading) -> Verdict | None:
    """Concatenation: the result's kept indices are those of its parts, one after another."""
    parts, dim = reading.argument(0, "tensors"), reading.argument(1, "dim", 0)
    if not isinstance(parts, (list, tuple)) or not parts or type(dim) is not int or not reading.same:
        return None
    if not all(isinstance(part, Claim) and part.shape and part.is_float for part in parts):
        return None
    ndim = len(parts[0].shape)
    if any(len(part.shape) != ndim for part in parts) or len(reading.kept) > ndim:
        return None
    dim %= ndim
    for place in range(ndim):
        if place != dim and not all(same_kept(at(part.kept, place), at(reading.kept, place)) for part in parts):
            return None
    if not same_kept(_end_to_end(parts, dim), at(reading.kept, dim)):
        return None
    shape = [
        sum(part.shape[dim] for part in parts) if place == dim else size for place, size in enumerate(parts[0].shape)
    ]
    silent = all(part.silent for part in parts if part.is_lossy)
    return Verdict(shape, widest(parts), silent)


def padded(reading: Reading) -> Verdict | None:
    """Zero padding: the narrow call adds as many zeros at each end as are kept of the full call's."""
    given, ours, theirs = reading.tensor(), _zeros_added(reading.node), _zeros_added(reading.other)
    if (
        given is None
        or not given.shape
        or map_arg(reading.node.args[0], reading.images.get) is not reading.other.args[0]
    ):
        return None
    if ours is None or theirs is None or max(len(ours), len(theirs), len(reading.kept)) > len(given.shape):
        return None
    shape = list(given.shape)
    for back, ((low, high), added) in enumerate(zip_longest(ours, theirs, fillvalue=(0, 0)), 1):
        size, dim = shape[-back], len(shape) - back
        shape[-back] += low + high
        middle, index = (every(at(kept, dim), s) for kept, s in ((given.kept, size), (reading.kept, shape[-back])))
        stays = index[added[0] : len(index) - added[1]]
        before, after = index[: added[0]], index[len(index) - added[1] :]
        if len(index) != sum(added) + len(middle) or not torch.equal(stays, middle + low):
            return None
        if bool((before >= low).any()) or bool(((after < low + size) | (after >= shape[-back])).any()):
            return None
    others = range(len(shape) - max(len(ours), len(theirs)))
    if not all(same_kept(at(given.kept, dim), at(reading.kept, dim)) for dim in others):
        return None
    return Verdict(shape, given.domain or "any", given.silent or not given.is_lossy)


def _zeros_added(node: Any) -> list[tuple[int, int]] | None:
    """How many zeros a call of ``pad`` adds at both ends of each dim, the last dim first."""
    pads, mode, value = (_literal(node, place, name, None) for place, name in enumerate(("pad", "mode", "value"), 1))
    if mode not in (None, "constant") or value not in (None, 0) or not isinstance(pads, (tuple, list)):
        return None
    if len(pads) % 2 or not all(type(pad) is int and pad >= 0 for pad in pads) or not 1 < len(node.args) < 5:
        return None
    return list(zip(pads[::2], pads[1::2], strict=True))


def cut(reading: Reading, name: str) -> Verdict | None:
    """Pieces along a dim: each keeps its part of the kept indices, if both networks cut at the same entries."""
    given, place = reading.tensor(), 1 if name == "unbind" else 2
    dims = [_literal(node, place, "dim", 0) for node in (reading.node, reading.other)]
    if given is None or not given.shape or not all(type(dim) is int for dim in dims):
        return None
    dim = dims[0] % len(given.shape)
    if dim != dims[1] % len(given.shape):
        return None
    full = reading.tried(lambda claim: on_meta(claim.shape or ()))
    narrow = reading.tried_narrow(lambda claim: on_meta(cut_shape(claim.shape or (), claim.kept)))
    if not isinstance(full, (tuple, list)) or not isinstance(narrow, (tuple, list)) or len(full) != len(narrow):
        return None
    index, rest = at(given.kept, dim), [at(given.kept, n) for n in range(len(given.shape)) if n != dim]
    if name == "unbind":
        pieces = [Piece(tuple(piece.shape), tuple(rest)) for piece in full]
        return None if index is not None else Verdict((), given.domain, given.silent, shares=True, pieces=pieces)
    kept = _cut_index(index, [t.shape[dim] for t in full], [t.shape[dim] for t in narrow])
    if kept is None:
        return None
    pieces = [Piece(tuple(t.shape), (*rest[:dim], own, *rest[dim:])) for t, own in zip(full, kept, strict=True)]
    return Verdict((), given.domain, given.silent, shares=True, at_any_size=False, pieces=pieces)


def _literal(node: Any, position: int, name: str, default: Any) -> Any:
    return node.args[position] if position < len(node.args) else node.kwargs.get(name, default)


def _cut_index(index: Tensor | None, sizes: Sequence[int], narrow_sizes: Sequence[int]) -> list[Tensor | None] | None:
    """The kept indices of each piece; None if the pieces of both networks do not hold the same entries."""
    if index is None:
        return [None] * len(sizes) if [*sizes] == [*narrow_sizes] else None
    found: list[Tensor | None] = []
    starts = 0, 0
    for size, narrow_size in zip(sizes, narrow_sizes, strict=True):
        own = index[starts[1] : starts[1] + narrow_size] - starts[0]
        if len(own) != narrow_size or (narrow_size and not 0 <= int(own.min()) <= int(own.max()) < size):
            return None
        found.append(own)
        starts = starts[0] + size, starts[1] + narrow_size
    return found if starts[1] == len(index) else None


def piece(reading: Reading) -> Verdict | None:
    """One of the pieces of a :func:`cut`."""
    whole, number = reading.claims[reading.node.all_input_nodes[0]], reading.node.args[1]
    if type(number) is not int or not -len(whole.pieces) <= number < len(whole.pieces) or not reading.same:
        return None
    found = whole.pieces[number]
    if found.shape is None or len(reading.kept) > len(found.shape):
        return None
    if not reading.keeps_like(found, len(found.shape)):
        return None
    return Verdict(found.shape, found.domain or "any", found.silent, shares=True)


def _end_to_end(parts: Iterable[Claim], dim: int) -> Tensor | None:
    found, start, whole = [], 0, True
    for part in parts:
        size, index = (part.shape or ())[dim], at(part.kept, dim)
        whole = whole and index is None
        found.append(start + (every(index, size)))
        start += size
    return None if whole else torch.cat(found)
