"""How much a network magnifies rounding: one that does so too much cannot be compared to a small tolerance.

A chain of random layers may be chaotic: two orders of summation, equal in exact arithmetic, then differ visibly in the
outputs. Relative changes of all parameters stand for what rounding does in every layer.
"""

from __future__ import annotations

import torch
from torch import nn

from fxprune.proof.comparing import Leaves, compare
from fxprune.proof.probes import Probe
from fxprune.proof.running import evaluate

# Rounding errors of a layer's sums are this many units in the last place, or fewer.
_UNITS = 30


@torch.no_grad()
def is_steady(
    module: nn.Module, probe: Probe, answer: Leaves, dtype: torch.dtype, tolerance: float, *, seed: int
) -> bool:
    """Whether rounding in ``module``, a private copy, stays below ``tolerance`` in its outputs on ``probe``.

    ``answer`` is what the module gives there. Its parameters are changed by the square root of the unit roundoff.
    """
    unit: float = torch.finfo(dtype).eps
    change = unit**0.5
    move_parameters(module, change, seed)
    amplification = compare(answer, evaluate(module, probe, dtype, seed=seed)).error / change
    return bool(amplification * unit * _UNITS < tolerance)


@torch.no_grad()
def move_parameters(module: nn.Module, change: float, seed: int) -> None:
    """Multiply all parameters by random factors about one, of the standard deviation ``change``."""
    bound = 3**0.5 * change
    for number, parameter in enumerate(module.parameters()):
        if parameter.is_floating_point():
            generator = torch.Generator(parameter.device).manual_seed(seed + number)
            noise = torch.empty_like(parameter).uniform_(1 - bound, 1 + bound, generator=generator)
            parameter.mul_(noise)
