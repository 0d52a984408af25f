"""Laws of contractions (layers, matrix products, attention) and of norms with a weight per channel.

Removed entries of a weight are zero. So removed entries of the input add nothing, whatever they hold; kept ones meet
the kept weights if both keep the same channels in the same order; and removed entries of the output are zero. The other
arguments of both layers are equal, and the narrow weight is the kept part of the full one: both are already checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.proof.nodes.claims import Claim, Kept, at, cut_shape, every, same_kept
from fxprune.proof.nodes.laws.reading import Reading, Verdict


def _keeps_only(kept: Kept, *dims: int) -> bool:
    """Whether nothing is removed along any other dim."""
    return all(index is None for dim, index in enumerate(kept) if dim not in dims)


def linear(reading: Reading) -> Verdict | None:
    """``x @ weight.T + bias`` with a weight from the graph, whose removed entries are zero."""
    given, weight, bias = reading.tensor(), reading.tensor(1, "weight"), reading.argument(2, "bias")
    if given is None or weight is None or not reading.same or not (weight.silent and weight.caused):
        return None
    if bias is not None and not (isinstance(bias, Claim) and bias.is_float and bias.silent and bias.caused):
        return None
    return _linear(reading, given, weight.shape or (), weight.kept, None if bias is None else bias.kept)


def _linear_layer(reading: Reading) -> Verdict | None:
    given, weight = reading.tensor(), reading.tensors_of("weight")[0]
    if given is None or weight is None or not reading.same:
        return None
    return _linear(reading, given, weight.shape, reading.kept_of("weight") or (), reading.kept_of("bias"))


def _linear(reading: Reading, given: Claim, weight: Sequence[int], kept: Kept, bias: Kept | None) -> Verdict | None:
    shape = given.shape or ()
    last = len(shape) - 1
    if len(weight) != 2 or last < 0 or shape[last] != weight[1]:
        return None
    if not same_kept(at(given.kept, last), at(kept, 1)) or not same_kept(at(reading.kept, last), at(kept, 0)):
        return None
    if bias is not None and not same_kept(at(bias, 0), at(kept, 0)):
        return None
    if not reading.keeps_like(given, last):
        return None
    # Removed rows hold the bias.
    silent = _keeps_only(given.kept, last)
    return Verdict([*shape[:last], weight[0]], silent=silent)


def _convolution(reading: Reading) -> Verdict | None:
    given, weight = reading.tensor(), reading.tensors_of("weight")[0]
    layer, kept, bias = reading.module, reading.kept_of("weight") or (), reading.kept_of("bias")
    if given is None or given.shape is None or weight is None or not reading.same or len(given.shape) != weight.ndim:
        return None
    transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
    if not (_keeps_only(given.kept, 0, 1) and _keeps_only(reading.kept, 0, 1) and _keeps_only(kept, 0, 1)):
        return None
    if not same_kept(at(given.kept, 0), at(reading.kept, 0)):
        return None
    if bias is not None and not same_kept(at(bias, 0), at(reading.kept, 1)):
        return None
    groups = layer.groups, reading.narrow_module.groups
    ends = (at(kept, 0), at(kept, 1)) if not transposed else (at(kept, 1), at(kept, 0))
    channels = (weight.shape[0], weight.shape[1]) if not transposed else (weight.shape[1], weight.shape[0])
    if groups == (1, 1):
        fits = same_kept(at(given.kept, 1), ends[1]) and same_kept(at(reading.kept, 1), ends[0])
    else:
        fits = not transposed and _fits_in_groups(at(given.kept, 1), at(reading.kept, 1), ends, channels, groups)
    outputs = channels[0] * (layer.groups if transposed else 1)
    sides = _sides(layer, given.shape[2:])
    if not fits or sides is None or min(sides) < 1:
        return None
    # Removed rows hold the bias.
    return Verdict([given.shape[0], outputs, *sides], silent=_keeps_only(given.kept, 1))


def _fits_in_groups(
    given: Tensor | None,
    result: Tensor | None,
    weight: tuple[Tensor | None, Tensor | None],
    channels: Sequence[int],
    groups: tuple[int, int],
) -> bool:
    """Whether all kept groups keep equally many outputs, and the same inputs, in order."""
    outputs = every(weight[0], channels[0])
    inputs = every(weight[1], channels[1])
    if not same_kept(result, weight[0]) or outputs.numel() % groups[1] or channels[0] % groups[0]:
        return False
    owners = (outputs // (channels[0] // groups[0])).view(groups[1], -1)
    ordered = owners[:, 0]
    if bool((owners != owners[:, :1]).any()) or bool((ordered[1:] <= ordered[:-1]).any()):
        return False
    expected = (ordered[:, None] * channels[1] + inputs).flatten()
    return torch.equal(expected, every(given, channels[1] * groups[0]))


def _sides(layer: Any, sides: Sequence[int]) -> list[int] | None:
    """The sides of a convolution's output maps."""
    numbers = zip(sides, layer.kernel_size, layer.stride, layer.dilation, strict=True)
    reaches = [(size, dilation * (kernel - 1), stride) for size, kernel, stride, dilation in numbers]
    if layer.padding == "same":
        return list(sides)
    padding = [0] * len(sides) if isinstance(layer.padding, str) else layer.padding
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return [
            (size - 1) * stride - 2 * pad + reach + more + 1
            for (size, reach, stride), pad, more in zip(reaches, padding, layer.output_padding, strict=True)
        ]
    return [
        (size + 2 * pad - reach - 1) // stride + 1 for (size, reach, stride), pad in zip(reaches, padding, strict=True)
    ]


def _batch_norm(reading: Reading) -> Verdict | None:
    """Each channel has its own statistics in both modes; removed scales and shifts are zero."""
    given = reading.tensor()
    if given is None or given.shape is None or len(given.shape) < 2 or not reading.same:
        return None
    tensors = [
        kept
        for name in ("weight", "bias", "running_mean", "running_var")
        if (kept := reading.kept_of(name)) is not None
    ]
    if not (_keeps_only(given.kept, 1) and _keeps_only(reading.kept, 1)):
        return None
    if not all(
        same_kept(at(kept, dim), at(given.kept, 1)) for kept, dim in [(reading.kept, 1), *((t, 0) for t in tensors)]
    ):
        return None
    affine = reading.kept_of("weight") is not None and reading.kept_of("bias") is not None
    return Verdict(given.shape, silent=affine or not given.is_lossy)


def _layer_norm(reading: Reading) -> Verdict | None:
    """A norm over one dim with removed entries: it is taken over the kept ones."""
    given = reading.tensor()
    if given is None or given.shape is None or not given.caused or not reading.same:
        return None
    last, sizes = len(given.shape) - 1, (given.shape, cut_shape(given.shape, given.kept))
    modules = reading.module, reading.narrow_module
    if any(tuple(m.normalized_shape) != size[last:] for m, size in zip(modules, sizes, strict=True)):
        return None
    if not reading.keeps_like(given, last + 1):
        return None
    tensors = [kept for name in ("weight", "bias") if (kept := reading.kept_of(name)) is not None]
    if not all(same_kept(at(kept, 0), at(given.kept, last)) for kept in tensors):
        return None
    return Verdict(given.shape, over_kept=True, silent=_keeps_only(given.kept, last))


def layer_norm(reading: Reading) -> Verdict | None:
    """The same for the function, whose weight and bias are values of the graph."""
    given, weight, bias = reading.tensor(), reading.argument(2, "weight"), reading.argument(3, "bias")
    rest = [_without_sizes(node) for node in (reading.node, reading.other)]
    if given is None or given.shape is None or not given.caused or any(found is None for found in rest):
        return None
    (ours, sizes), (theirs, narrow_sizes) = rest  # type: ignore[misc]
    last, after = len(given.shape) - 1, cut_shape(given.shape, given.kept)
    if torch.fx.node.map_arg(ours, reading.images.get) != theirs or (sizes, narrow_sizes) != (
        given.shape[last:],
        after[last:],
    ):
        return None
    if not reading.keeps_like(given, last + 1):
        return None
    tensors = [claim for claim in (weight, bias) if claim is not None]
    if not all(isinstance(claim, Claim) and claim.is_float and claim.caused for claim in tensors):
        return None
    if not all(same_kept(at(claim.kept, 0), at(given.kept, last)) for claim in tensors):
        return None
    silent = _keeps_only(given.kept, last) and bool(tensors) and all(claim.silent for claim in tensors)
    return Verdict(given.shape, over_kept=True, silent=silent)


def _without_sizes(node: torch.fx.Node) -> tuple[Any, tuple[int, ...]] | None:
    """The arguments of a norm without ``normalized_shape``, and that; None if it is not literal."""
    args, kwargs = list(node.args), dict(node.kwargs)
    sizes: Any = args.pop(1) if len(args) > 1 else kwargs.pop("normalized_shape", None)
    sizes = (sizes,) if type(sizes) is int else sizes
    if not isinstance(sizes, (tuple, list)) or not all(type(size) is int for size in sizes):
        return None
    return (args, kwargs), tuple(sizes)


def _embedding(reading: Reading) -> Verdict | None:
    given, weight = reading.argument(0, "input"), reading.tensors_of("weight")[0]
    kept = reading.kept_of("weight") or ()
    if not isinstance(given, Claim) or given.shape is None or given.is_float or weight is None or not reading.same:
        return None
    last = len(given.shape)
    if reading.module.max_norm is not None or not given.is_whole or at(kept, 0) is not None:
        return None
    if not _keeps_only(reading.kept, last) or not same_kept(at(reading.kept, last), at(kept, 1)):
        return None
    return Verdict([*given.shape, weight.shape[1]])


def matmul(reading: Reading) -> Verdict | None:
    """A product of matrices or of batches of matrices."""
    left, right = reading.tensor(), reading.tensor(1, "other") or reading.tensor(1, "mat2")
    if left is None or right is None or not reading.same or min(len(left.shape or ()), len(right.shape or ())) < 2:
        return None
    result, way = reading.kept, _contracts(left, -1, right, -2)
    if not way or not same_kept(_end(left, -2), _at_end(result, -2, left, right)):
        return None
    if not same_kept(_end(right, -1), _at_end(result, -1, left, right)):
        return None
    shape = _stacked([left, right], result, len(_longer(left, right)))
    if shape is None:
        return None
    return _product([*shape, (left.shape or ())[-2], (right.shape or ())[-1]], (left, right), way)


def _product(shape: Sequence[int], operands: Sequence[Claim], way: str) -> Verdict:
    silent = all(claim.silent for claim in operands if claim.is_lossy)
    return Verdict(shape, silent=silent, over_kept=way == "over kept")


def einsum(reading: Reading) -> Verdict | None:
    """A sum of products of two tensors over the letters that the result lacks."""
    equation, left, right = reading.node.args[0], reading.tensor(1), reading.tensor(2)
    if not isinstance(equation, str) or left is None or right is None or not reading.same:
        return None
    terms, arrow, result = equation.replace(" ", "").partition("->")
    words = [*terms.split(","), result]
    plain = all(word.isalpha() and len({*word}) == len(word) for word in words) and {*result} <= {*words[0], *words[1]}
    if not arrow or len(words) != 3 or not plain or len(reading.node.args) != 3 or len(reading.kept) > len(result):
        return None
    if (len(words[0]), len(words[1])) != (len(left.shape or ()), len(right.shape or ())):
        return None
    sizes = [dict(zip(word, claim.shape or (), strict=True)) for word, claim in zip(words, (left, right), strict=False)]
    if any(sizes[0][letter] != sizes[1][letter] for letter in {*words[0]} & {*words[1]}):
        return None
    ways = {_letter(reading.kept, words, letter, left, right) for letter in {*words[0], *words[1]}}
    way = "over kept" if "over kept" in ways else "adds nothing"
    return None if "" in ways else _product([{**sizes[0], **sizes[1]}[letter] for letter in result], (left, right), way)


def _letter(kept: Kept, words: Sequence[str], letter: str, left: Claim, right: Claim) -> str:
    """How a dim of two operands enters their product, see :func:`_contracts`; "" if their kept indices differ."""
    dims = [word.find(letter) for word in words]
    if dims[2] < 0 <= min(dims[:2]):
        return _contracts(left, dims[0], right, dims[1])
    expected = at(kept, dims[2]) if dims[2] >= 0 else None
    own = [at(claim.kept, dim) for claim, dim in zip((left, right), dims, strict=False) if dim >= 0]
    return "adds nothing" if all(same_kept(index, expected) for index in own) else ""


def attention(reading: Reading) -> Verdict | None:
    """Scaled attention: queries and keys are contracted over one dim, attention weights and values over another."""
    query, key, value = (reading.tensor(n, name) for n, name in enumerate(("query", "key", "value")))
    mask, scale = reading.argument(3, "attn_mask"), _scales(reading)
    if query is None or key is None or value is None or scale is None or reading.argument(7, "enable_gqa", False):
        return None
    stacks, ndim = [query, key, value], len(query.shape or ())
    if ndim < 2 or any(len(claim.shape or ()) != ndim for claim in stacks):
        return None
    if isinstance(mask, Claim) and not _masks_all(mask, reading.kept, ndim):
        return None
    if any(_end(claim, -2) is not None for claim in stacks) or at(reading.kept, ndim - 2) is not None:
        return None
    way = _contracts(query, -1, key, -1)
    if not way or not same_kept(_end(value, -1), at(reading.kept, ndim - 1)):
        return None
    shape = _stacked(stacks, reading.kept, ndim)
    if shape is None:
        return None
    weights = [*shape, (query.shape or ())[-2], (key.shape or ())[-2]]
    if isinstance(mask, Claim) and not _stretches(mask.shape or (), weights):
        return None
    # If a head's queries or keys are removed, its output is an average of its values.
    sizes = [*shape, (query.shape or ())[-2], (value.shape or ())[-1]]
    return Verdict(sizes, silent=value.silent, over_kept=way == "over kept")


def _stretches(sizes: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether a tensor of these sizes can be expanded to others."""
    ahead = len(wanted) - len(sizes)
    return ahead >= 0 and all(size in (1, wanted[ahead + dim]) for dim, size in enumerate(sizes))


def _masks_all(mask: Claim, kept: Kept, ndim: int) -> bool:
    """Whether a mask is the same along all batch dims (all but the last two) with removed entries."""
    sizes = (mask.shape or ())[:-2]
    ahead = ndim - 2 - len(sizes)
    return mask.is_whole and all(size == 1 or at(kept, ahead + dim) is None for dim, size in enumerate(sizes))


def _scales(reading: Reading) -> float | None:
    """The scale, if both calls have the same one and differ in nothing else; else None."""
    full: dict[str, Any] = dict(reading.node.kwargs)
    narrow: dict[str, Any] = dict(reading.other.kwargs)
    query = reading.tensor(0, "query")
    if query is None or not query.shape or len(reading.node.args) > 6:
        return None
    sizes = query.shape[-1], cut_shape(query.shape, query.kept)[-1]
    scales = [
        1 / math.sqrt(size) if (given := side.pop("scale", None)) is None else given
        for side, size in zip((full, narrow), sizes, strict=True)
    ]
    if not all(isinstance(scale, float) for scale in scales) or not math.isclose(*scales, rel_tol=1e-12):
        return None
    args, kwargs = torch.fx.node.map_arg((reading.node.args, full), reading.images.get)
    return scales[0] if args == reading.other.args and kwargs == narrow else None


def _contracts(left: Claim, dim: int, right: Claim, other: int) -> str:
    """How two operands are contracted over a dim; "" if their kept indices differ.

    "adds nothing": one operand is zero in the removed entries. "over kept": the sum leaves them out.
    """
    kept = at(left.kept, dim % len(left.shape or ()))
    sizes = (left.shape or ())[dim], (right.shape or ())[other]
    if sizes[0] != sizes[1] or not same_kept(kept, at(right.kept, other % len(right.shape or ()))):
        return ""
    if kept is None or left.silent or right.silent:
        return "adds nothing"
    return "over kept" if left.caused and right.caused else ""


def _end(claim: Claim, dim: int) -> Tensor | None:
    return at(claim.kept, len(claim.shape or ()) + dim)


def _longer(left: Claim, right: Claim) -> tuple[int, ...]:
    return max(left.shape or (), right.shape or (), key=len)


def _at_end(kept: Kept, dim: int, left: Claim, right: Claim) -> Tensor | None:
    return at(kept, len(_longer(left, right)) + dim)


def _stacked(operands: Sequence[Claim], kept: Kept, ndim: int) -> tuple[int, ...] | None:
    """The batch sizes, if all operands that are not expanded keep the same there; else None."""
    shapes = [(claim.shape or ())[:-2] for claim in operands]
    try:
        shape: tuple[int, ...] = tuple(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
    except RuntimeError:
        return None
    for claim, own in zip(operands, shapes, strict=True):
        ahead = len(shape) - len(own)
        for dim, size in enumerate(shape):
            stretched = dim < ahead or own[dim - ahead] != size
            index = None if dim < ahead else at(claim.kept, dim - ahead)
            if not (index is None if stretched else same_kept(index, at(kept, dim))):
                return None
    return shape if len(shape) == ndim - 2 else None


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS: dict[type[nn.Module], Callable[[Reading], Verdict | None]] = {
    nn.Linear: _linear_layer,
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm),
    **dict.fromkeys((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    nn.Embedding: _embedding,
}
"""By torch.nn class, its law."""
