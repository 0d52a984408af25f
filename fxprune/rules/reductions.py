"""Reductions, and ops that run along a dim and keep it."""

from __future__ import annotations

import math

import torch
from torch import nn

from fxprune.axes.expressions import ONE, has_fixed
from fxprune.rules.call import Axes, Call
from fxprune.rules.ops import writes_in_place
from fxprune.rules.pointwise import broadcast
from fxprune.rules.registry import module_form, repairs, rule
from fxprune.rules.repair import Repair

_NUMBERED = "its elements are numbered in the result"


def _reduced(axes: Axes, dims: tuple[int, ...], keepdim: bool) -> Axes:
    if keepdim:
        return tuple(ONE if i in dims else a for i, a in enumerate(axes))
    return tuple(a for i, a in enumerate(axes) if i not in dims)


def _reduce(call: Call, dims: tuple[int, ...]) -> None:
    axes = call.tensor("input")
    call.crosses(axes[d] for d in dims)
    result = _reduced(axes, dims, bool(call.number("keepdim")))
    call.result = result if isinstance(call.value, torch.Tensor) else [result for _ in call.value]


@rule(
    "sum mean amax amin nansum nanmean all any prod logsumexp special_logsumexp aminmax count_nonzero",
    "input, dim=None, keepdim=False",
)
@rule("norm", "input, p=fro, dim=None, keepdim=False")
@rule("linalg_vector_norm linalg_norm", "input, ord=None, dim=None, keepdim=False")
def reduce(call: Call) -> None:
    _reduce(call, call.dims())


@rule("quantile nanquantile", "input, q, dim=None, keepdim=False")
def quantile(call: Call) -> None:
    dims = call.dims()
    call.pin_all((call.tensor("input")[d] for d in dims), "its elements are ordered by value")
    _reduce(call, dims)
    several = len(call.output_shape) - len(call.result)
    call.result = (*(call.fixed(s, "it numbers the quantiles") for s in call.output_shape[:several]), *call.result)


@rule("var std var_mean std_mean", "input, dim=None, unbiased=True, keepdim=False")
def spread(call: Call) -> None:
    """An unbiased variance over one element is NaN, so at least two elements must stay."""
    axes, biased = call.tensor("input"), call.arguments.get("dim")
    dims = tuple(range(len(axes))) if isinstance(biased, bool) else call.dims()
    if math.prod(axes[d].size for d in dims if has_fixed(axes[d])) == 1:
        call.keeps(axes[d] for d in dims)
    _reduce(call, dims)


@rule("max min median nanmedian mode", "input, dim=None, keepdim=False")
def extreme(call: Call) -> None:
    """``max(x, dim)`` and its index, ``max(x)``, or ``max(x, y)`` element by element."""
    second = "other" if call.has("other") else "dim"
    if call.has(second):
        call.result = broadcast(call, [call.tensor("input"), call.tensor(second)])
        return
    dims = (call.dim(),) if call.name == "mode" and call.number("dim") is None else call.dims()
    if not isinstance(call.value, torch.Tensor) and call.is_read(1):
        along = [call.tensor("input")[d] for d in dims]
        if call.name in ("max", "min") and len(dims) == 1 and not writes_in_place(call.node):
            call.gives_numbers(None, *along)
        else:
            call.pin_all(along, _NUMBERED)
    _reduce(call, dims)


@rule("argmax argmin", "input, dim=None, keepdim=False")
def argument(call: Call) -> None:
    axes = call.tensor("input")
    if call.number("dim") is None or writes_in_place(call.node):
        call.pin_all(axes, _NUMBERED)
        call.result = () if call.number("dim") is None else _reduced(axes, call.dims(), bool(call.number("keepdim")))
        return
    call.gives_numbers(axes[call.dim()])
    _reduce(call, (call.dim(),))


@rule("softmax log_softmax softmin special_softmax special_log_softmax", "input, dim=None")
def softmax(call: Call) -> None:
    axes = call.tensor("input")
    implicit = 0 if len(axes) in (1, 3) else 1
    call.crosses((axes[implicit if call.number("dim") is None else call.dim()],))
    call.result = axes


@rule("renorm", "input, p, dim, maxnorm")
def limited_norm(call: Call) -> None:
    """Each slice along ``dim`` is scaled to at most the norm ``maxnorm``."""
    axes, dim = call.tensor("input"), call.dim()
    call.crosses((*axes[:dim], *axes[dim + 1 :]))
    call.result = axes


@rule("normalize", "input, p=2.0, dim=1")
def normalize(call: Call) -> None:
    axes = call.tensor("input")
    call.crosses(axes[d] for d in call.dims())
    call.result = axes


@rule("cosine_similarity", "x1, x2, dim=1")
def cosine_similarity(call: Call) -> None:
    axes = broadcast(call, [call.tensor("x1"), call.tensor("x2")])
    dim = int(call.number("dim")) % len(axes)
    call.crosses((axes[dim],))
    call.result = tuple(a for i, a in enumerate(axes) if i != dim)


@rule("pairwise_distance", "x1, x2, p=2.0, eps=1e-6, keepdim=False")
def pairwise_distance(call: Call) -> None:
    axes = broadcast(call, [call.tensor("x1"), call.tensor("x2")])
    call.crosses(axes[-1:])
    call.result = (*axes[:-1], ONE) if call.number("keepdim") else axes[:-1]


@rule("cdist", "x1, x2, p=2.0")
def distances(call: Call) -> None:
    left, right = call.tensor("x1"), call.tensor("x2")
    call.unify(left[-1], right[-1])
    call.crosses(left[-1:])
    call.result = (*broadcast(call, [left[:-2], right[:-2]]), left[-2], right[-2])


@rule("cov", "input, correction=1, fweights=None, aweights=None")
@rule("corrcoef", "input")
def covariance(call: Call) -> None:
    """Of rows, over columns; any weights are for the columns."""
    axes = call.tensor("input")
    for name in ("input", "fweights", "aweights"):
        if call.has(name):
            call.pin(call.tensor(name)[-1], "it divides by their number")
    call.result = axes[:1] * 2 if len(axes) == 2 else ()


@rule("dist", "input, other")
def distance(call: Call) -> None:
    call.crosses(broadcast(call, [call.tensor("input"), call.tensor("other")]))
    call.result = ()


@rule("cumsum cumprod logcumsumexp cummax cummin", "input, dim")
def scan(call: Call) -> None:
    """Each element depends on the elements before it; narrowing keeps their order."""
    axes = call.tensor("input")
    along = axes[call.dim()]
    call.crosses((along,))
    if isinstance(call.value, torch.Tensor):
        call.result = axes
        return
    if call.is_read(1):
        call.pin(along, _NUMBERED)
    call.result = [axes, axes]


@rule("diff", "input, n=1, dim=-1, prepend=None, append=None")
def difference(call: Call) -> None:
    axes, dim = list(call.tensor("input")), call.dim()
    call.pin_all([operand[dim] for operand in _operands(call)], "each of its elements meets its neighbour")
    for operand in _operands(call)[1:]:
        call.unify_all(axes[:dim] + axes[dim + 1 :], (*operand[:dim], *operand[dim + 1 :]))
    axes[dim] = call.fixed(call.output_shape[dim])
    call.result = tuple(axes)


def _operands(call: Call) -> list[Axes]:
    return [call.tensor(name) for name in ("input", "prepend", "append") if call.has(name)]


@rule("linalg_cross cross", "input, other, dim=-1")
def cross(call: Call) -> None:
    axes = broadcast(call, [call.tensor("input"), call.tensor("other")])
    call.pin(axes[call.dim(ndim=len(axes))], "it numbers the three coordinates")
    call.result = axes


_REORDERED = "its elements are reordered by value"


@rule("sort argsort", "input, dim=-1, descending=False")
def sort(call: Call) -> None:
    """If the values are indices into an axis, their order does not change when unused elements of it are removed."""
    axes = call.tensor("input")
    call.pin(axes[call.dim()], _REORDERED)
    call.result = axes if isinstance(call.value, torch.Tensor) else [axes, axes]
    numbered = None if writes_in_place(call.node) else call.numbered_by(call.arguments["input"])
    if numbered is not None and not isinstance(call.value, torch.Tensor):
        call.gives_numbers(numbered, None)


@rule("kthvalue", "input, k, dim=-1")
def kth(call: Call) -> None:
    axes, dim = call.tensor("input"), call.dim()
    call.pin(axes[dim], _REORDERED)
    result = tuple(call.fixed(1) if i == dim else a for i, a in enumerate(axes))
    if len(call.value[0].shape) < len(axes):
        result = (*axes[:dim], *axes[dim + 1 :])
    call.result = [result, result]


@rule("topk", "input, k, dim=-1, largest=True, sorted=True")
def topk(call: Call) -> None:
    """The largest kept elements, as if removed ones were minus infinity; the result's indices refer to the axis."""
    axes, dim = call.tensor("input"), call.dim()
    if writes_in_place(call.node) or call.varies(call.arguments["k"]):
        call.pin(axes[dim], _REORDERED)
    else:
        call.crosses((axes[dim],))
        call.keeps((axes[dim],), int(call.number("k")))
        call.gives_numbers(None, axes[dim])
    result = (*axes[:dim], call.fixed(call.value[0].shape[dim], "it numbers the largest"), *axes[dim + 1 :])
    call.result = [result, result]


module_form(nn.Softmax, "softmax", "dim")
module_form(nn.LogSoftmax, "log_softmax", "dim")
module_form(nn.Softmin, "softmin", "dim")
module_form(nn.CosineSimilarity, "cosine_similarity", "dim")
module_form(nn.PairwiseDistance, "pairwise_distance", "keepdim")
module_form(nn.Softmax2d, "softmax", more=lambda m: {"dim": -3})


_MIXED = "a Fourier transform mixes its elements by number"
_ONE_DIM = "fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft"
_TWO_DIMS = "fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2"
_ALL_DIMS = "fft_fftn fft_ifftn fft_rfftn fft_irfftn"


def _transformed(call: Call, dims: tuple[int, ...]) -> None:
    axes = list(call.tensor("input"))
    for dim in dims:
        call.pin(axes[dim], _MIXED)
        axes[dim] = call.fixed(call.output_shape[dim], _MIXED)
    call.result = tuple(axes)


@rule(_ONE_DIM, "input, n=None, dim=-1")
def transform(call: Call) -> None:
    _transformed(call, (call.dim(),))


@rule(_TWO_DIMS, "input, s=None, dim=None")
def transform_of_two(call: Call) -> None:
    rank = len(call.tensor("input"))
    _transformed(call, (rank - 2, rank - 1) if call.number("dim") is None else call.dims())


@rule(_ALL_DIMS, "input, s=None, dim=None")
def transform_of_all(call: Call) -> None:
    sizes, rank = call.number("s"), len(call.tensor("input"))
    last = range(rank - len(sizes), rank) if sizes is not None and call.number("dim") is None else call.dims()
    _transformed(call, tuple(last))


@rule("fft_fftshift fft_ifftshift", "input, dim=None")
def shift(call: Call) -> None:
    _transformed(call, call.dims())


@rule("histc", "input, bins=100, min=0, max=0")
def histc(call: Call) -> None:
    """Counts of values in intervals; if each interval holds the index of one element, the result has that axis."""
    call.pin_all(call.tensor("input"), "it counts all values")
    numbered = call.numbered_by(call.arguments["input"])
    limits = [call.arguments[name] for name in ("bins", "min", "max")]
    if numbered is not None and limits == [numbered.size, 0, numbered.size - 1] and type(limits[2]) is int:
        call.result = (numbered,)
        return
    call.understood.clear()
    call.output_fixed("it numbers intervals")


@rule("bincount", "input, weights=None, minlength=0")
def bincount(call: Call) -> None:
    """Counts of numbers; if those are indices into an axis of ``minlength`` elements, the result has that axis."""
    for name in ("input", "weights"):
        if call.has(name):
            call.pin_all(call.tensor(name), "it counts all values")
    numbered = call.numbered_by(call.arguments["input"])
    if numbered is not None and call.arguments["minlength"] == numbered.size:
        call.result = (numbered,)
        return
    call.understood.clear()
    call.output_fixed("it numbers values")


@repairs("bincount")
def repair_bincount(repair: Repair) -> None:
    (axis,) = repair.call.result
    if repair.shrinks(axis):
        repair.set("minlength", repair.size(axis))


@repairs("histc")
def repair_histc(repair: Repair) -> None:
    (axis,) = repair.call.result
    if repair.shrinks(axis):
        repair.set("bins", repair.size(axis))
        repair.set("max", repair.size(axis) - 1)
