"""Reshapes: row-major factors are matched in parts, so that only the axes that cannot be aligned are pinned."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fxprune.axes.expressions import ONE, Axis, Fixed, product
from fxprune.rules.call import Axes, Call
from fxprune.rules.ops import is_written
from fxprune.rules.registry import module_form, repairs, rule
from fxprune.rules.repair import Repair


def reshaped(call: Call, axes: Axes, shape: tuple[int, ...]) -> Axes:
    """Axes of ``shape`` that hold the same elements as ``axes`` in row-major order."""
    flat = product(axes)
    if flat.size == 0:
        call.pin_all(axes, "an empty tensor is reshaped")
        return tuple(call.fixed(s) for s in shape)
    if isinstance(flat, Fixed):
        return tuple(Fixed(s, flat.why) for s in shape)
    kept = _unchanged(axes, shape)
    result: list[Axis] = [ONE if s == 1 else call.fresh(s, d) for d, s in enumerate(shape)]
    front, back = kept
    result[:front] = axes[:front]
    if back:
        result[-back:] = axes[-back:]
    inner_old, inner_new = axes[front : len(axes) - back], result[front : len(result) - back]
    if inner_old or inner_new:
        call.unify(product(inner_old), product(inner_new))
    return tuple(call.solver.resolve(a) for a in result)


def _unchanged(axes: Axes, shape: tuple[int, ...]) -> tuple[int, int]:
    """The numbers of leading and trailing dims that are the same before and after."""
    front = back = 0
    shortest = min(len(axes), len(shape))
    while front < shortest and axes[front].size == shape[front]:
        front += 1
    while back < shortest - front and axes[-1 - back].size == shape[-1 - back]:
        back += 1
    return front, back


@rule("view reshape view_copy", "input, *size")
def view(call: Call) -> None:
    call.result = reshaped(call, call.tensor("input"), call.output_shape)


@repairs("view reshape view_copy")
def repair_view(repair: Repair) -> None:
    """The argument may also be a dtype, which has no sizes."""
    if not any(isinstance(size, torch.dtype) for size in repair.call.numbers("size")):
        repair.resize_all("size", repair.call.result)


@rule("view_as reshape_as", "input, other")
def view_as(call: Call) -> None:
    call.result = reshaped(call, call.tensor("input"), call.output_shape)
    call.unify_all(call.result, call.tensor("other"))


@rule("flatten ravel", "input, start_dim=0, end_dim=-1")
def flatten(call: Call) -> None:
    axes = call.tensor("input")
    start, end = call.dim("start_dim"), call.dim("end_dim")
    call.result = (*axes[:start], product(axes[start : end + 1]), *axes[end + 1 :])


@rule("unflatten", "input, dim, *sizes")
def unflatten(call: Call) -> None:
    axes, dim = call.tensor("input"), call.dim()
    count = len(call.output_shape) - len(axes) + 1
    inner = reshaped(call, (axes[dim],), call.output_shape[dim : dim + count])
    call.notes["factors"] = inner
    call.result = (*axes[:dim], *inner, *axes[dim + 1 :])


@repairs("unflatten")
def repair_unflatten(repair: Repair) -> None:
    repair.resize_all("sizes", repair.call.notes["factors"])


@rule("squeeze", "input, dim=None")
def squeeze(call: Call) -> None:
    axes = call.tensor("input")
    dims = call.dims() if call.number("dim") is not None else tuple(range(len(axes)))
    call.keeps(axes[dim] for dim in dims)
    call.result = tuple(a for i, a in enumerate(axes) if not (i in dims and a.size == 1))


@rule("atleast_1d atleast_2d atleast_3d", "*tensors")
def at_least(call: Call) -> None:
    """Tensors with fewer dims get dims of size one: in front, and for three dims one at the end."""
    rank = int(call.name[-2])
    raised = [_raised(axes, rank) for axes in call.tensors("tensors")]
    call.result = raised[0] if isinstance(call.value, torch.Tensor) else raised


def _raised(axes: Axes, rank: int) -> Axes:
    if len(axes) == 0:
        return (ONE,) * rank
    if len(axes) == 1:
        return ((ONE,) if rank > 1 else ()) + axes + ((ONE,) if rank > 2 else ())
    return (*axes, ONE) if len(axes) == 2 and rank == 3 else axes


@rule("unsqueeze", "input, dim")
def unsqueeze(call: Call) -> None:
    axes = list(call.tensor("input"))
    axes.insert(call.dim(ndim=len(axes) + 1), ONE)
    call.result = tuple(axes)


@rule("permute", "input, *dims")
def permute(call: Call) -> None:
    axes = call.tensor("input")
    call.result = tuple(axes[d] for d in call.dims("dims"))


@rule("transpose", "input, dim0, dim1")
def transpose(call: Call) -> None:
    axes = list(call.tensor("input"))
    a, b = call.dim("dim0"), call.dim("dim1")
    axes[a], axes[b] = axes[b], axes[a]
    call.result = tuple(axes)


@rule("t", "input")
def reverse(call: Call) -> None:
    call.result = call.tensor("input")[::-1]


@rule("mT", "input")
def swap_last(call: Call) -> None:
    axes = call.tensor("input")
    call.result = (*axes[:-2], axes[-1], axes[-2])


@rule("movedim", "input, source, destination")
def movedim(call: Call) -> None:
    axes = call.tensor("input")
    source, destination = call.dims("source"), call.dims("destination")
    order: list[int | None] = [None] * len(axes)
    for s, d in zip(source, destination, strict=True):
        order[d] = s
    rest = iter(i for i in range(len(axes)) if i not in source)
    call.result = tuple(axes[o if o is not None else next(rest)] for o in order)


@rule("view_as_complex view_as_real", "input")
def complex_view(call: Call) -> None:
    axes = call.tensor("input")
    if call.name == "view_as_complex":
        call.pin(axes[-1], "it holds the real and the imaginary part")
        call.result = axes[:-1]
    else:
        call.result = (*axes, call.fixed(2, "it holds the real and the imaginary part"))


@repairs("view_as_complex")
def repair_complex_view(repair: Repair) -> None:
    """There is no such view of a tensor with an odd stride, which a part of a narrower tensor may have."""
    node = repair.call.node
    if not node.all_input_nodes[0].meta["val"].is_contiguous() and not is_written(node):
        repair.set("input", repair.emit("contiguous", repair.arguments["input"]))


def _sizes(module: Any) -> dict[str, Any]:
    return {"sizes": tuple(module.unflattened_size)}


module_form(nn.Flatten, "flatten", "start_dim end_dim")
module_form(nn.Unflatten, "unflatten", "dim", _sizes, {"sizes": "unflattened_size"})
