"""Rounding: how much a network magnifies it, and which outputs consist of rounding alone.

A chain of random layers may be chaotic: two orders of summation, equal in exact arithmetic, then give visibly different
outputs. Small relative changes of all parameters stand in for the rounding of every layer. Other outputs are zero but
for rounding, such as the mean of an instance norm: no relative tolerance can compare them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.proof.comparing import Leaves, compare, is_float
from fxprune.proof.probes import Probe
from fxprune.proof.running import evaluate

# Rounding errors of a layer's sums are at most this many units in the last place.
_UNITS = 30


@torch.no_grad()
def is_steady(
    module: nn.Module, probe: Probe, answer: Leaves, dtype: torch.dtype, tolerance: float, *, seed: int
) -> bool:
    """Whether rounding changes the outputs of ``module``, a private copy, on ``probe`` by less than ``tolerance``.

    ``answer``: the module's outputs there. Its parameters are changed by the square root of the unit roundoff.
    """
    unit: float = torch.finfo(dtype).eps
    change = unit**0.5
    move_parameters(module, change, seed)
    amplification = compare(answer, evaluate(module, probe, dtype, seed=seed)).error / change
    return bool(amplification * unit * _UNITS < tolerance)


@torch.no_grad()
def move_parameters(module: nn.Module, change: float, seed: int) -> None:
    """Multiply all parameters by random factors with mean 1 and standard deviation ``change``."""
    bound = 3**0.5 * change
    for number, parameter in enumerate(module.parameters()):
        if parameter.is_floating_point():
            generator = torch.Generator(parameter.device).manual_seed(seed + number)
            noise = torch.empty_like(parameter).uniform_(1 - bound, 1 + bound, generator=generator)
            parameter.mul_(noise)


# Cancellation leaves at most this many units in the last place of the largest intermediate value.
_CANCELLED = 100
# If parameters change by rounding, such an output changes by at least this share of itself.
_SHARE = 0.01
# Another order of summation changes an output by at most this many times that change. The bound matters where another
# intermediate value is huge, such as the number that masks attention.
_MOVEMENTS = 1000


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the largest magnitude in the results of all operators."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.value = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in pytree.tree_leaves(result):
            if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                self.value = max(self.value, _magnitude(value))
        return result


def rounding_levels(
    module: nn.Module, probe: Probe, answer: Leaves, dtype: torch.dtype, *, seed: int
) -> dict[str, float]:
    """The outputs of ``module`` that consist of rounding alone; ``module``: a private copy, which is changed.

    Returns:
        By the output's path, the magnitude below which its values are rounding. An output is included if it is no
        larger than that and changes as soon as parameters change by a few units in the last place. The magnitude is
        also bounded by the size of that change.
    """
    with _Largest() as largest:
        evaluate(module, probe, dtype, seed=seed)
    level = _CANCELLED * torch.finfo(dtype).eps * largest.value
    tiny = {p: leaf for p, leaf in answer.items() if is_float(leaf) and leaf.numel() and _magnitude(leaf) <= level}
    move_parameters(module, 4 * torch.finfo(dtype).eps, seed)
    moved = evaluate(module, probe, dtype, seed=seed) if tiny else {}
    movements = {path: _magnitude(moved[path] - leaf) for path, leaf in tiny.items()}
    return {
        path: min(level, _MOVEMENTS * movements[path])
        for path, leaf in tiny.items()
        if movements[path] >= _SHARE * _magnitude(leaf)
    }


def without_rounding(left: Leaves, right: Leaves, levels: dict[str, float]) -> tuple[Leaves, Leaves]:
    """The outputs of two networks without those that are rounding in both."""
    gone = {p for p, level in levels.items() if _agree(left.get(p), right.get(p), level)}
    return {p: leaf for p, leaf in left.items() if p not in gone}, {p: f for p, f in right.items() if p not in gone}


def _agree(left: Any, right: Any, level: float) -> bool:
    if not (isinstance(left, Tensor) and isinstance(right, Tensor)) or left.shape != right.shape:
        return False
    return max(_magnitude(left), _magnitude(right)) <= level


def _magnitude(value: Tensor) -> float:
    """The largest finite magnitude; infinity if no entry is finite."""
    finite = value.detach()[torch.isfinite(value)]
    return float(finite.abs().max()) if finite.numel() else float("inf")
