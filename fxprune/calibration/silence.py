"""Channels that are zero for every input: the graph is run with NaN for all values that depend on the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import Mask
from fxprune.calibration.collecting import PrivateNetwork
from fxprune.calibration.statistic import Tap
from fxprune.calibration.taps import TapFinder
from fxprune.capture.samples import Sample

Op = torch._ops.OpOverload
_NAN = float("nan")
# Elementwise ops, moves of entries and pools: a result is NaN wherever it depends on a NaN of an operand.
HONEST = frozenset(
    """abs add amax amin avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
    adaptive_max_pool2d cat celu clamp clamp_min clone constant_pad_nd copy div elu exp flip gather gelu hardsigmoid
    hardswish hardtanh index index_select leaky_relu max_pool2d_with_indices max_pool3d_with_indices mean mish neg
    pixel_shuffle pixel_unshuffle _prelu_kernel relu repeat roll rsub selu sigmoid silu softplus sqrt stack sub sum
    tanh _to_copy _unsafe_view upsample_bicubic2d upsample_bilinear2d upsample_nearest1d upsample_nearest2d
    upsample_nearest3d upsample_trilinear3d""".split()
)


class Unknown(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs operators with NaN for unknown values. A zero weight or factor makes the product zero, not NaN.

    All results of other operators that read a NaN are unknown. Integer and boolean results of a NaN are put on the meta
    device, so that an operator that reads them fails.
    """

    def __torch_dispatch__(
        self, func: Op, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        drawn = torch.Tag.nondeterministic_seeded in func.tags
        result = func(*args, **(kwargs or {}))
        if func.is_view or not (drawn or any(t.is_floating_point() and t.isnan().any() for t in given)):
            return result
        name = func._schema.name.removeprefix("aten::").removesuffix("_")
        if not drawn and name in _EXACT:
            marked = _EXACT[name](result, *args)
        elif not drawn and name in HONEST:
            marked = result
        else:
            marked = pytree.tree_map_only(Tensor, _lost, result)
        if func._schema.is_mutable and isinstance(result, Tensor):
            return result.copy_(marked)
        return pytree.tree_map_only(Tensor, lambda t: t if t.is_floating_point() else t.to("meta"), marked)


def _lost(value: Tensor) -> Tensor:
    return torch.full_like(value, _NAN) if value.is_floating_point() else value


def _product(run: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor, shift: Any = None) -> Tensor:
    """A sum of products, known where each product has two known factors or a zero factor."""
    factors = [(t.isnan().to(t.dtype), (t != 0).to(t.dtype), t.nan_to_num(0.0)) for t in (left, right)]
    (no, some, value), (other_no, other_some, other) = factors
    result = run(value, other) if shift is None else run(value, other) + shift
    return result.masked_fill(run(no, other_some) + run(some, other_no) > 0, _NAN)


def _convolution(result: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    shift = None if bias is None else bias.reshape(-1, *[1] * (weight.dim() - 2))
    return _product(lambda a, w: torch.convolution(a, w, None, *rest), x, weight, shift)


def _norm(result: tuple[Tensor, ...], x: Tensor, scale: Tensor | None, shift: Tensor | None, *rest: Any) -> Any:
    """A batch norm in eval mode; if the scale is zero, the result is the shift."""
    if scale is None or rest[2] is True:
        return result
    wide = [1, -1, *[1] * (x.dim() - 2)]
    constant = (torch.zeros_like(scale) if shift is None else shift).reshape(wide)
    return torch.where((scale == 0).reshape(wide), constant, result[0]), *result[1:]


def _times(result: Tensor, left: Any, right: Any) -> Tensor:
    return torch.where(torch.as_tensor(left == 0) | torch.as_tensor(right == 0), torch.zeros_like(result), result)


_EXACT: dict[str, Callable[..., Any]] = {
    "convolution": _convolution,
    "mm": lambda result, a, b: _product(torch.mm, a, b),
    "bmm": lambda result, a, b: _product(torch.bmm, a, b),
    "mv": lambda result, a, b: _product(torch.mv, a, b),
    "addmm": lambda result, shift, a, b: _product(torch.mm, a, b, shift),
    "mul": _times,
    "native_batch_norm": _norm,
}


def silent_channels(graph: ChannelGraph, model: nn.Module, sample: Sample) -> dict[Group, Mask]:
    """By group, the channels that are zero at all their readings, for every input of the sample's sizes.

    Groups that a norm or a mean runs over are left out. The result is empty if the network takes inputs other than
    floating-point numbers, has several specializations, or runs an op that fails on unknown values.
    """
    finder, found = TapFinder(graph), dict[Group, Mask]()
    watched: dict[Any, list[Callable[[Tensor], None]]] = {}
    waiting: set[tuple[Group, Tap]] = set()
    for group in graph.groups:
        taps, readers = finder.readings(group), finder.readers(group)
        if taps and len(taps) == len(readers) and not group.crosses_norm:
            found[group] = group.without(())
            for tap in taps:

                def note(value: Tensor, group: Group = group, tap: Tap = tap) -> None:
                    # A sum, not a comparison: booleans of unknown values are not readable here.
                    sums = tap.read(value, None).abs().movedim(1, 0).flatten(1).sum(1)
                    found[group] &= sums.cpu().numpy() == 0
                    waiting.discard((group, tap))

                waiting.add((group, tap))
                watched.setdefault((tap.node, tap.reader), []).append(note)
    if not found or graph.captured.specializations or not all(t.is_floating_point() for t in sample.tensors):
        return {}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), Unknown():  # type: ignore[no-untyped-call]
            PrivateNetwork(graph, model, watched).run(sample.map(lambda t: torch.full_like(t, _NAN)))
    except Exception:  # an op that does not accept NaN, or reads a number that depends on the input
        return {}
    unseen = {group for group, _ in waiting}
    return {group: mask for group, mask in found.items() if group not in unseen}
