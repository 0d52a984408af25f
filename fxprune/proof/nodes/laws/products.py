"""Sums of products over a dim, as in layers, products of matrices and attention, and norms with a weight per channel.

A weight has zeros where entries of it go. So what goes of the input adds nothing whatever it holds, what stays meets
the weights that stay if both keep the same channels in the same order, and what goes of the output is zero. The other
arguments of both layers are equal, and the narrow weight is the kept part of the full one: that was compared before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.proof.nodes.claims import Claim, Kept, at, cut_shape, same_kept
from fxprune.proof.nodes.laws.reading import Reading, Verdict


def _keeps_only(kept: Kept, *dims: int) -> bool:
    """Whether nothing goes along any other dim."""
    return all(index is None for dim, index in enumerate(kept) if dim not in dims)


def linear(reading: Reading) -> Verdict | None:
    """``x @ weight.T + bias`` over values of the graph; what goes of the weight is zero."""
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
    if not all(same_kept(at(given.kept, dim), at(reading.kept, dim)) for dim in range(last)):
        return None
    # Rows that go hold the bias.
    silent = _keeps_only(given.kept, last)
    return Verdict([*shape[:last], weight[0]], silent=silent)


def _convolution(reading: Reading) -> Verdict | None:
    given, weight = reading.tensor(), reading.tensors_of("weight")[0]
    layer, kept, bias = reading.module, reading.kept_of("weight") or (), reading.kept_of("bias")
    if given is None or given.shape is None or weight is None or not reading.same or len(given.shape) != weight.ndim:
        return None
    transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
    if not (_keeps_only(given.kept, 1) and _keeps_only(reading.kept, 1) and _keeps_only(kept, 0, 1)):
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
    return Verdict([given.shape[0], outputs, *sides])


def _fits_in_groups(
    given: Tensor | None,
    result: Tensor | None,
    weight: tuple[Tensor | None, Tensor | None],
    channels: Sequence[int],
    groups: tuple[int, int],
) -> bool:
    """Whether each group that stays keeps as many outputs as another, and the same inputs, in order."""
    outputs = _every(weight[0], channels[0])
    inputs = _every(weight[1], channels[1])
    if not same_kept(result, weight[0]) or outputs.numel() % groups[1] or channels[0] % groups[0]:
        return False
    owners = (outputs // (channels[0] // groups[0])).view(groups[1], -1)
    ordered = owners[:, 0]
    if bool((owners != owners[:, :1]).any()) or bool((ordered[1:] <= ordered[:-1]).any()):
        return False
    expected = (ordered[:, None] * channels[1] + inputs).flatten()
    return torch.equal(expected, _every(given, channels[1] * groups[0]))


def _every(kept: Tensor | None, size: int) -> Tensor:
    return torch.arange(size) if kept is None else kept.cpu()


def _sides(layer: Any, sides: Sequence[int]) -> list[int] | None:
    """The sides of the maps that a convolution gives."""
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
    """Each channel by its own statistics, in both modes; what goes of the scale and of the shift is zero."""
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
    """A norm over one dim of which entries go: it is taken over what stays."""
    given = reading.tensor()
    if given is None or given.shape is None or not given.caused or not reading.same:
        return None
    last, sizes = len(given.shape) - 1, (given.shape, cut_shape(given.shape, given.kept))
    modules = reading.module, reading.narrow_module
    if any(tuple(m.normalized_shape) != size[last:] for m, size in zip(modules, sizes, strict=True)):
        return None
    if not all(same_kept(at(given.kept, dim), at(reading.kept, dim)) for dim in range(last + 1)):
        return None
    tensors = [kept for name in ("weight", "bias") if (kept := reading.kept_of(name)) is not None]
    if not all(same_kept(at(kept, 0), at(given.kept, last)) for kept in tensors):
        return None
    return Verdict(given.shape, over_kept=True, silent=_keeps_only(given.kept, last))


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
    """A product of matrices, or of stacks of them."""
    left, right = reading.tensor(), reading.tensor(1, "other") or reading.tensor(1, "mat2")
    if left is None or right is None or not reading.same or min(len(left.shape or ()), len(right.shape or ())) < 2:
        return None
    result = reading.kept
    if not _contracts(left, -1, right, -2) or not same_kept(_end(left, -2), _at_end(result, -2, left, right)):
        return None
    if not same_kept(_end(right, -1), _at_end(result, -1, left, right)):
        return None
    shape = _stacked([left, right], result, len(_longer(left, right)))
    if shape is None:
        return None
    silent = all(claim.silent for claim in (left, right) if claim.is_lossy)
    return Verdict([*shape, (left.shape or ())[-2], (right.shape or ())[-1]], silent=silent)


def attention(reading: Reading) -> Verdict | None:
    """Scaled attention: queries meet keys over one dim, and weights meet values over another."""
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
    if not _contracts(query, -1, key, -1) or not same_kept(_end(value, -1), at(reading.kept, ndim - 1)):
        return None
    shape = _stacked(stacks, reading.kept, ndim)
    if shape is None:
        return None
    # Where a head's queries or keys go, its values are averaged.
    return Verdict([*shape, (query.shape or ())[-2], (value.shape or ())[-1]], silent=value.silent)


def _masks_all(mask: Claim, kept: Kept, ndim: int) -> bool:
    """Whether a mask is the same along all dims in front of rows and columns of which entries go."""
    sizes = (mask.shape or ())[:-2]
    ahead = ndim - 2 - len(sizes)
    return mask.is_whole and all(size == 1 or at(kept, ahead + dim) is None for dim, size in enumerate(sizes))


def _scales(reading: Reading) -> float | None:
    """The scale, where both calls have the same and differ in nothing else; None where they do not."""
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


def _contracts(left: Claim, dim: int, right: Claim, other: int) -> bool:
    """Whether two operands keep the same along the dim over which they are summed, and what goes adds nothing."""
    kept = _end(left, dim)
    sizes = (left.shape or ())[dim], (right.shape or ())[other]
    if sizes[0] != sizes[1] or not same_kept(kept, _end(right, other)):
        return False
    return kept is None or left.silent or right.silent


def _end(claim: Claim, dim: int) -> Tensor | None:
    return at(claim.kept, len(claim.shape or ()) + dim)


def _longer(left: Claim, right: Claim) -> tuple[int, ...]:
    return max(left.shape or (), right.shape or (), key=len)


def _at_end(kept: Kept, dim: int, left: Claim, right: Claim) -> Tensor | None:
    return at(kept, len(_longer(left, right)) + dim)


def _stacked(operands: Sequence[Claim], kept: Kept, ndim: int) -> tuple[int, ...] | None:
    """The sizes in front of the matrices, along which all operands that are not stretched keep the same."""
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
"""By class of torch.nn, the law of its layers."""
