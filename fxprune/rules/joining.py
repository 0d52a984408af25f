"""Concatenation and stacking."""

from __future__ import annotations

from collections.abc import Sequence

from fxprune.axes.expressions import ONE, concat
from fxprune.rules.call import Axes, Call
from fxprune.rules.registry import rule


@rule("cat", "tensors, dim=0")
def cat(call: Call) -> None:
    pieces = [axes for axes in call.tensors("tensors") if not (len(axes) == 1 and axes[0].size == 0)]
    call.result = joined(call, pieces, int(call.number("dim")) % len(pieces[0]))


def joined(call: Call, pieces: Sequence[Axes], dim: int) -> Axes:
    """Tensors end to end on ``dim``, tied on every other dim."""
    for axes in pieces[1:]:
        for i, (first, other) in enumerate(zip(pieces[0], axes, strict=True)):
            if i != dim:
                call.unify(first, other)
    result = list(pieces[0])
    result[dim] = concat(axes[dim] for axes in pieces)
    return tuple(result)


_DIMS = {"hstack": 1, "column_stack": 1, "vstack": 0, "row_stack": 0, "dstack": 2}


@rule(" ".join(_DIMS), "tensors")
def stack_by_name(call: Call) -> None:
    """Concatenations on a dim that the name says, after giving vectors the dims they lack."""
    pieces = [_raised(call.name, axes) for axes in call.tensors("tensors")]
    call.result = joined(call, pieces, min(_DIMS[call.name], len(pieces[0]) - 1))


def _raised(name: str, axes: Axes) -> Axes:
    if name == "column_stack":
        return (*axes, ONE) if len(axes) == 1 else axes
    if name in ("vstack", "row_stack", "dstack") and len(axes) == 1:
        axes = (ONE, *axes)
    return (*axes, ONE) if name == "dstack" and len(axes) == 2 else axes


@rule("stack", "tensors, dim=0")
def stack(call: Call) -> None:
    pieces = call.tensors("tensors")
    for axes in pieces[1:]:
        call.unify_all(pieces[0], axes)
    call.joins(pieces[0])
    result = list(pieces[0])
    result.insert(int(call.number("dim")) % (len(result) + 1), call.fixed(len(pieces), "tensors are stacked on it"))
    call.result = tuple(result)
