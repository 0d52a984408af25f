"""Laws of ops that treat all entries along some dims alike: operands and result keep the same indices along these.

A call on one slice shows whether the op maps zero to zero, the result's size along the other dims, and whether the
result shares memory with an operand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.proof.nodes.claims import Claim, at, same_kept
from fxprune.proof.nodes.drawing import domain_of
from fxprune.proof.nodes.laws.reading import Reading, Verdict
from fxprune.proof.nodes.pairs import call_name

POINTWISE = frozenset(
    """add sub mul truediv div iadd isub imul itruediv maximum minimum pow neg abs exp expm1 log log1p sqrt rsqrt square
    reciprocal sin cos erf sign floor ceil round clamp clamp_min clamp_max relu relu6 gelu silu sigmoid tanh hardswish
    hardsigmoid hardtanh leaky_relu elu selu celu mish softplus softsign logsigmoid tanhshrink hardshrink softshrink
    threshold dropout""".split()
)
# In-place random draws: both networks draw the same numbers if nothing is removed.
_DRAWS = frozenset("bernoulli uniform normal exponential".split())
POINTWISE |= _DRAWS
POINTWISE_MODULES = frozenset(
    """ReLU ReLU6 GELU SiLU Sigmoid Tanh Hardswish Hardsigmoid Hardtanh LeakyReLU ELU SELU CELU Mish Softplus Softsign
    LogSigmoid Tanhshrink Hardshrink Softshrink Threshold Dropout Identity""".split()
)
# How many values are tried, and how many of these have zero for removed entries; the others have both signs.
_COUNT, _AT_ZERO = 96, 32


def pointwise(reading: Reading) -> Verdict | None:
    """A pointwise op: each entry depends on the entries at its place, with broadcasting."""
    tensors = [claim for claim in reading.operands if claim.shape is not None]
    if not tensors or not reading.same or not all(claim.is_float for claim in tensors):
        return None
    if call_name(reading.node).removesuffix("_") in _DRAWS and not all(claim.is_whole for claim in tensors):
        return None
    shape = _broadcast([claim.shape or () for claim in tensors])
    if shape is None or not all(_fits(claim, shape, reading) for claim in tensors):
        return None
    if reading.writes and (tensors[0].shape != shape or "out" in reading.node.kwargs):
        return None
    known, key = reading.patterns.known, (*reading.call, *((claim.domain, _is_silenced(claim)) for claim in tensors))
    found = known[key] = known[key] if key in known else _on_entries(reading)
    if found is None:
        return None
    domain, silent, shares = found
    return Verdict(shape, domain, silent or not any(claim.is_lossy for claim in tensors), shares)


def _is_silenced(claim: Claim) -> bool:
    return claim.is_lossy and claim.silent


def _on_entries(reading: Reading) -> tuple[str, bool, bool] | None:
    """The domain of the results, whether zero in removed entries leads to zero, and whether memory is shared."""
    used: list[Tensor] = []

    def value_of(claim: Claim) -> Tensor:
        value = reading.patterns.drawn(claim.domain or "any", (_COUNT,), len(used)).clone()
        if _is_silenced(claim):
            value[:_AT_ZERO] = 0
        used.append(value)
        return value

    result = reading.tried(value_of)
    if not isinstance(result, Tensor) or result.shape != (_COUNT,) or not result.is_floating_point():
        return None
    if not bool(torch.isfinite(result[_AT_ZERO:]).all()):
        return None
    return domain_of(result[_AT_ZERO:]), not bool(result[:_AT_ZERO].any()), _shares(result, used)


def _broadcast(shapes: Sequence[Sequence[int]]) -> tuple[int, ...] | None:
    if all(shape == shapes[0] for shape in shapes):
        return tuple(shapes[0])
    try:
        return tuple(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
    except RuntimeError:
        return None


def _fits(claim: Claim, shape: tuple[int, ...], reading: Reading) -> bool:
    """Whether an operand keeps the same as the result along all dims along which it is not broadcast."""
    own = claim.shape or ()
    ahead = len(shape) - len(own)
    if len(claim.kept) > len(own) or len(reading.kept) > len(shape):
        return False
    for dim, size in enumerate(shape):
        stretched = dim < ahead or own[dim - ahead] != size
        kept = at(claim.kept, dim - ahead) if dim >= ahead else None
        if not (kept is None if stretched else same_kept(kept, at(reading.kept, dim))):
            return False
    return True


def _shares(result: Tensor, used: Iterable[Tensor]) -> bool:
    memory = result.untyped_storage()._cdata
    return any(tensor.untyped_storage()._cdata == memory for tensor in used)


def local(reading: Reading, mixed_of: Callable[[Reading, int], Mixed | None]) -> Verdict | None:
    """An op on one tensor that mixes entries only along some dims, which must keep everything."""
    given = reading.tensor()
    if given is None or given.shape is None or not reading.same or reading.writes:
        return None
    others = [claim for claim in reading.operands if claim is not given]
    found = mixed_of(reading, len(given.shape))
    if found is None or not all(claim.is_whole for claim in others) or not _parameters_are_whole(reading):
        return None
    mixed, dropped = found
    if any(at(given.kept, dim) is not None for dim in mixed):
        return None
    dims = [dim for dim in range(len(given.shape)) if not (dropped and dim in mixed)]
    if len(reading.kept) > len(dims) or len(given.kept) > len(given.shape):
        return None
    if not all(same_kept(at(given.kept, dim), at(reading.kept, place)) for place, dim in enumerate(dims)):
        return None
    return _on_a_slice(reading, given, mixed, dims)


def _on_a_slice(reading: Reading, given: Claim, mixed: frozenset[int], dims: Sequence[int]) -> Verdict | None:
    sizes = [size if dim in mixed else 1 for dim, size in enumerate(given.shape or ())]

    def tried(value: Tensor) -> Tensor | None:
        result = reading.tried(lambda claim: value if claim is given else claim.full)
        fits = isinstance(result, Tensor) and result.is_floating_point() and result.ndim == len(dims)
        return result if fits else None

    value = reading.patterns.drawn(given.domain or "any", sizes, 1).clone()
    result = tried(value)
    if result is None or not bool(torch.isfinite(result).all()):
        return None
    shape = [result.shape[place] if dim in mixed else (given.shape or ())[dim] for place, dim in enumerate(dims)]
    if any(result.shape[place] != 1 for place, dim in enumerate(dims) if dim not in mixed):
        return None
    silent = not given.is_lossy
    if given.is_lossy and given.silent and len(reading.operands) == 1 and not _has_parameters(reading):
        at_zero = tried(torch.zeros_like(value))
        silent = at_zero is not None and not bool(at_zero.any())
    return Verdict(shape, domain_of(result), silent, _shares(result, (value,)))


def _has_parameters(reading: Reading) -> bool:
    return reading.module is not None and any(t is not None for t in reading.module._parameters.values())


def _parameters_are_whole(reading: Reading) -> bool:
    if reading.module is None:
        return True
    names = (*reading.module._parameters, *reading.module._buffers)
    return all(kept is None for name in names for kept in reading.kept_of(name) or ())


# The dims along which an op mixes entries, and whether it drops them.
Mixed = tuple[frozenset[int], bool]
MixedOf = Callable[[Reading, int], Mixed | None]


def _dims(value: Any, ndim: int) -> frozenset[int] | None:
    values = value if isinstance(value, (list, tuple)) else (value,)
    if not values or not all(type(dim) is int and -ndim <= dim < ndim for dim in values):
        return None
    return frozenset(dim % ndim for dim in values)


def _along(position: int, name: str = "dim", default: Any = None, *, alone: bool = False) -> MixedOf:
    """Mixes along the dims of one argument, which must be the last argument if ``alone``."""

    def mixed(reading: Reading, ndim: int) -> Mixed | None:
        dims = _dims(reading.argument(position, name, default), ndim)
        # Dims may also be passed as separate arguments.
        return None if dims is None or (alone and len(reading.node.args) > position + 1) else (dims, False)

    return mixed


def _reduced(reading: Reading, ndim: int) -> Mixed | None:
    dims, keeps = _dims(reading.argument(1, "dim"), ndim), reading.argument(2, "keepdim", False)
    return None if dims is None or type(keeps) is not bool else (dims, not keeps)


def _last(count: Callable[[Reading, int], int]) -> MixedOf:
    """Mixes along the last ``count`` dims."""

    def mixed(reading: Reading, ndim: int) -> Mixed | None:
        number = count(reading, ndim)
        return (frozenset(range(ndim - number, ndim)), False) if 0 < number < ndim else None

    return mixed


def _map(sides: int) -> MixedOf:
    """Mixes along the sides of maps, after batch and channels."""
    return lambda reading, ndim: (frozenset(range(2, ndim)), False) if ndim == sides + 2 else None


def _named(reading: Reading, ndim: int) -> Mixed | None:
    dims = _dims(reading.module.dim, ndim)
    return None if dims is None else (dims, False)


def _padded(reading: Reading, ndim: int) -> Mixed | None:
    """Mixes along the dims that are padded by anything but a literal 0; pads start at the last dim."""
    args = reading.node.args
    pads = args[1] if len(args) > 1 else reading.node.kwargs.get("pad")
    if not isinstance(pads, (list, tuple)) or len(pads) % 2 or len(pads) > 2 * ndim:
        return None
    dims = [ndim - 1 - number for number in range(len(pads) // 2) if any(p != 0 for p in pads[2 * number :][:2])]
    return frozenset(dims), False


def _count(value: Any) -> int:
    return len(value) if isinstance(value, (list, tuple)) else 1


_KINDS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")
_MAPS = _last(lambda reading, ndim: ndim - 2)

LOCAL: dict[str, MixedOf] = {
    **dict.fromkeys(("softmax", "log_softmax", "softmin", "cumsum", "cumprod", "logcumsumexp"), _along(1)),
    "glu": _along(1, default=-1),
    "flip": _along(1, "dims", alone=True),
    "roll": _along(2, "dims", alone=True),
    "normalize": _along(2, default=1),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "logsumexp"), _reduced),
    **dict.fromkeys(("layer_norm", "rms_norm"), _last(lambda r, ndim: _count(r.argument(1, "normalized_shape")))),
    "pad": _padded,
    "interpolate": _MAPS,
    **{f"{kind}{sides}d": _map(sides) for kind in _KINDS for sides in (1, 2, 3)},
}
"""By name of a torch function, the dims along which it mixes entries."""

LOCAL_MODULES: dict[type[nn.Module], MixedOf] = {
    **dict.fromkeys((nn.Softmax, nn.LogSoftmax, nn.Softmin), _named),
    **dict.fromkeys((nn.LayerNorm, nn.RMSNorm), _last(lambda reading, ndim: len(reading.module.normalized_shape))),
    **{
        getattr(nn, f"{kind}Pad{sides}d"): _last(lambda reading, ndim: len(reading.module.padding) // 2)
        for kind in ("Zero", "Constant", "Reflection", "Replication", "Circular")
        for sides in (1, 2, 3)
    },
    **{
        getattr(nn, f"{kind}Pool{n}d"): _map(n)
        for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg")
        for n in (1, 2, 3)
    },
    **dict.fromkeys((nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), _MAPS),
    **{getattr(nn, f"Dropout{sides}d"): _map(sides) for sides in (1, 2, 3)},
}
"""By torch.nn class, the dims along which it mixes."""
