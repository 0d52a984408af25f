"""One step of training: outputs, gradients of parameters, and what the call left in buffers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .chance import RowChance
from .comparing import Leaves, compare, leaves_of, magnitude
from .probes import Probe
from .running import called, changed_inputs, modes
from .selecting import Keep, select

__all__ = ["Step", "difference_of", "training_step"]

# Differences are relative to the largest entry of the tensor, but not below this share of the largest of all tensors:
# the mean of what a batch norm gave, and the gradient of a bias in front of one, are nothing but rounding.
_FLOOR = 1e-4
_GRADIENTS = 1e-6


@dataclass(eq=False)
class Step:
    """What a step in training mode gave.

    Attributes:
        outputs: leaves of the outputs, and changed inputs.
        gradients: by the names of parameters, those of a weighted sum of all outputs; None where it does not reach.
        buffers: the buffers after the call.
        modes: the ``training`` flags of all modules after ``eval()`` and after ``train()``.
        draws: the random draws on the way, see :class:`RowChance`.
    """

    outputs: Leaves
    buffers: dict[str, Tensor]
    modes: tuple[dict[str, bool], dict[str, bool]]
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    draws: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)


def training_step(
    module: nn.Module,
    flags: nn.Module,
    probe: Probe,
    dtype: torch.dtype,
    *,
    seed: int,
    backward: bool,
    carry_nan: bool = False,
) -> Step:
    """Call ``module``, a private copy, in training mode, and go backwards if asked.

    ``flags``: the network whose parameters say which of them want gradients.
    """
    modes_set = _modes_of(module.eval()), _modes_of(module.train())
    shapes = {name: buffer.shape for name, buffer in module.named_buffers(remove_duplicate=False)}
    wanted = {name for name, p in flags.named_parameters(remove_duplicate=False) if p.requires_grad}
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in wanted)
    sample = probe.in_dtype(dtype)
    torch.manual_seed(seed)
    with modes(dtype, carry_nan=carry_nan, gradients=backward), RowChance(seed) as chance:
        output = called(module, sample)
        total = _weighted_sum(output) if backward else None
        if total is not None:
            total.backward()  # type: ignore[no-untyped-call]
    leaves = leaves_of(output) | changed_inputs(sample, probe.in_dtype)
    buffers = dict(module.named_buffers(remove_duplicate=False))
    # A buffer that got another shape is a cache.
    kept = {name: b.detach() for name, b in buffers.items() if b.shape == shapes.get(name)}
    return Step(leaves, kept, modes_set, {name: p.grad for name, p in parameters.items()}, chance.draws)


def _modes_of(module: nn.Module) -> dict[str, bool]:
    return {path: part.training for path, part in module.named_modules()}


def _weighted_sum(output: Any) -> Tensor | None:
    """A sum of all outputs that want a gradient, in which no two entries count alike."""
    total: Tensor | None = None
    for leaf in leaves_of(output, keep_history=True).values():
        if isinstance(leaf, Tensor) and leaf.requires_grad and leaf.is_floating_point():
            weights = 1 + torch.cos(torch.arange(leaf.numel(), device=leaf.device, dtype=leaf.dtype))
            part = (leaf.reshape(-1) * weights).mean()
            total = part if total is None else total + part
    return total


def difference_of(masked: Step, narrow: Step, keep: Keep, tolerance: float, *, gradients: bool) -> str:
    """Where two steps part, as the beginning of a sentence, or ""; ``masked`` is that of the masked original."""
    for call, ours, theirs in zip(("eval()", "train()"), masked.modes, narrow.modes, strict=True):
        wrong = next((path for path, mode in theirs.items() if ours.get(path, mode) is not mode), None)
        if wrong is not None:
            return f"{wrong or 'the network'}.training is {theirs[wrong]} after {call}, which differs"
    found = compare(masked.outputs, narrow.outputs)
    if not found.error <= tolerance:
        return found.describe(tolerance)
    wrong = _tensor_difference(masked.buffers, narrow.buffers, keep, tolerance)
    if wrong or not gradients:
        return wrong
    wrong = _tensor_difference(_present(masked), _present(narrow), keep, _GRADIENTS)
    return f"the gradient of {wrong}" if wrong else _reached(masked, narrow)


def _present(step: Step) -> dict[str, Tensor]:
    return {name: gradient for name, gradient in step.gradients.items() if gradient is not None}


def _reached(masked: Step, narrow: Step) -> str:
    """Which parameter has a gradient in one of the two steps only."""
    for name, gradient in narrow.gradients.items():
        expected = masked.gradients.get(name)
        if name in masked.gradients and (gradient is None) != (expected is None):
            there = expected if gradient is None else gradient
            if there is not None and bool(there.any()):
                return f"the gradient of {name!r} {'is missing' if gradient is None else 'is one too many'}: it differs"
    return ""


def _tensor_difference(full: Mapping[str, Tensor], narrow: Mapping[str, Tensor], keep: Keep, tolerance: float) -> str:
    """The first tensor whose kept entries differ."""
    common = [name for name in narrow if name in full]
    floats = [name for name in common if full[name].is_floating_point()]
    floor = _FLOOR * max((size for name in floats if math.isfinite(size := magnitude(full[name]))), default=0.0)
    for name in common:
        kept = select(full[name], keep.get(name, ()))
        found = compare({name: kept}, {name: narrow[name]})
        scale = magnitude(kept) if name in floats else 0.0
        error = found.error * scale / max(scale, floor) if 0 < scale < math.inf and not found.detail else found.error
        if not error <= tolerance:
            detail = found.detail or f"{error:.3g} relative, tolerance {tolerance:.0e}"
            return f"{name!r} differs ({detail})"
    return ""
