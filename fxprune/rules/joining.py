"""Concatenation and stacking."""

from __future__ import annotations

from fxprune.axes.expressions import concat
from fxprune.rules.call import Call
from fxprune.rules.registry import rule


@rule("cat hstack_list", "tensors, dim=0")
def cat(call: Call) -> None:
    pieces = [axes for axes in call.tensors("tensors") if not (len(axes) == 1 and axes[0].size == 0)]
    dim = int(call.number("dim")) % len(pieces[0])
    for axes in pieces[1:]:
        for i, (first, other) in enumerate(zip(pieces[0], axes, strict=True)):
            if i != dim:
                call.unify(first, other)
    result = list(pieces[0])
    result[dim] = concat(axes[dim] for axes in pieces)
    call.result = tuple(result)


@rule("stack", "tensors, dim=0")
def stack(call: Call) -> None:
    pieces = call.tensors("tensors")
    for axes in pieces[1:]:
        call.unify_all(pieces[0], axes)
    call.joins(pieces[0])
    result = list(pieces[0])
    result.insert(int(call.number("dim")) % (len(result) + 1), call.fixed(len(pieces), "tensors are stacked on it"))
    call.result = tuple(result)
