"""Checks for reshapes whose literals fit only the sample's sizes: next to a cut axis, other sizes would mix channels.

``x.reshape(n, 36, 3, -1)`` of ``(n, 36, 12)`` accepts other numbers of positions, but the last dim holds channels alone
only if there are 36. At full width, the other sizes have a meaning; a narrow network must refuse them.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any, cast

import torch
from torch import fx

from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import Mask
from fxprune.axes.expressions import Channels, Fixed, has_fixed
from fxprune.capture.decisions import REFUSAL, is_written_down
from fxprune.rewriting.slicing import KnownIndices, kept_indices
from fxprune.rules.ops import canonical_name


@dataclass(frozen=True)
class _Block:
    """The fewest neighbouring dims before and after a reshape that hold the same elements."""

    before: range
    after: range


def insert_reshape_checks(source: ChannelGraph, masks: Mapping[Channels, Mask]) -> None:
    """Insert a check before each reshape that has cut channels and literals that fit only the sample's sizes."""
    known = KnownIndices()
    for captured in source.captured.everything():
        for node in list(captured.graph.nodes):
            if node.op.startswith("call_") and canonical_name(node.target) in ("reshape", "view"):
                for dims, sizes in _conditions(source, masks, node, known):
                    _check(captured.graph, node, dims, sizes)


def _conditions(
    source: ChannelGraph, masks: Mapping[Channels, Mask], node: fx.Node, known: KnownIndices
) -> Iterator[tuple[list[int], list[Any]]]:
    """Pairs of dims of the input and arguments of the reshape that must have equal products."""
    given, *sizes = cast(Any, node.args)
    sizes = list(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], list | tuple) else sizes
    if not all(isinstance(value, int | fx.Node) for value in sizes) or {given, node} - source.axes.keys():
        return
    axes = [[source.solver.resolve(a) for a in source.axes[tensor]] for tensor in (given, node)]
    cut = [[index is not None for index in kept_indices(some, masks, known)] for some in axes]
    varies = [(isinstance(a, Fixed) or has_fixed(a)) and not is_written_down(given, d) for d, a in enumerate(axes[0])]
    if not any(cut[0]) or len(sizes) != len(axes[1]):
        return
    between: list[_Block] = []
    for block in [*_blocks(*([a.size for a in some] for some in axes)), None]:
        if block and not any(cut[0][d] for d in block.before):
            between.append(block)
            continue
        dims, args = [d for b in between for d in b.before], [sizes[d] for b in between for d in b.after]
        if -1 not in args and _matters(dims, args, varies):
            yield dims, args
        between = []
        if block:
            yield from _inside(block, [a.size for a in axes[0]], cut[0], varies, sizes)


def _inside(
    block: _Block, shape: list[int], cut: list[bool], varies: list[bool], sizes: list[Any]
) -> Iterator[tuple[list[int], list[Any]]]:
    """The conditions for a block with cut dims: other dims may vary only if outer arguments take up their change."""
    args = [sizes[d] for d in block.after]
    loose = [d for d in block.before if varies[d] and not cut[d]]
    if not _matters(loose, args, varies):
        return
    lost = [d for d in block.before if cut[d]]
    # (12, h * w) as (3, -1), or (n, 12) as (n * 3, 4): the literals divide the channels alone.
    if all(d > lost[-1] for d in loose) and _leads(args, shape[lost[0]]):
        return
    if all(d < lost[0] for d in loose) and _leads(args[::-1], shape[lost[-1]]):
        return
    for dim in loose:
        yield [dim], [shape[dim]]


def _leads(args: list[Any], size: int) -> bool:
    """Whether literals whose product divides ``size`` come first, and then only arguments that follow the input."""
    written = [isinstance(a, int) and a != -1 for a in args]
    count = written.index(False) if False in written else 0
    return bool(count) and not any(written[count:]) and size % prod(args[:count]) == 0


def _matters(dims: list[int], args: list[Any], varies: list[bool]) -> bool:
    """Whether some of the dims vary with the input while some of the arguments are literals above one."""
    return any(varies[d] for d in dims) and any(isinstance(a, int) and a > 1 for a in args)


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[_Block]:
    """The shortest runs of dims with equal products before and after.

    >>> [(list(b.before), list(b.after)) for b in _blocks((2, 36, 12), (2, 36, 3, 4))]
    [([0], [0]), ([1], [1]), ([2], [2, 3])]
    """
    found: list[_Block] = []
    i = j = 0
    while i < len(before) and j < len(after):
        first, second, left, right = i, j, before[i], after[j]
        i, j = i + 1, j + 1
        while left != right and (i < len(before) if left < right else j < len(after)):
            if left < right:
                left, i = left * before[i], i + 1
            else:
                right, j = right * after[j], j + 1
        found.append(_Block(range(first, i), range(second, j)))
    if found:
        found[-1] = _Block(range(found[-1].before.start, len(before)), range(found[-1].after.start, len(after)))
    return found


def _check(graph: fx.Graph, node: fx.Node, dims: list[int], sizes: list[Any]) -> None:
    given = cast(fx.Node, node.args[0])
    known = [int(given.meta["val"].shape[dim]) for dim in dims]
    with graph.inserting_before(node):
        live = [graph.call_method("size", (given, dim)) for dim in dims]
        for size, value in zip(live, known, strict=True):
            size.meta["val"] = value
        left, right = (reduce(lambda a, b: _times(graph, a, b), some) for some in (live, sizes))
        same = graph.call_function(operator.eq, (left, right))
        place = node.meta.get("source") or node.name
        text = f"{REFUSAL}inputs of other sizes: {place} reshapes {prod(known)} elements beside channels that were cut"
        check = graph.call_function(torch._assert, (same, text))
    same.meta["val"], check.meta["val"] = True, None


def _times(graph: fx.Graph, left: Any, right: Any) -> Any:
    if not isinstance(left, fx.Node) and not isinstance(right, fx.Node):
        return left * right
    product = graph.call_function(operator.mul, (left, right))
    product.meta["val"] = prod(v.meta["val"] if isinstance(v, fx.Node) else v for v in (left, right))
    return product
