"""One step of training: outputs, gradients of parameters, and buffers after the call."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.proof.comparing import Leaves, compare, leaves_of, magnitude
from fxprune.proof.masking import Keep, select
from fxprune.proof.probes import Probe
from fxprune.proof.running import called, changed_inputs, modes

_TRIALS = ("bernoulli", "bernoulli_")
_UNIFORM = ("rand", "rand_like", "uniform_")
_NORMAL = ("randn", "randn_like", "normal_", "exponential_")


class RowChance(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Replaces random draws by one number per row, so that networks of different widths draw the same numbers.

    In a mask drawn entry by entry, the numbers of a kept channel change once channels before it are removed. The number
    lies in the distribution's range, so a draw that is missing, misplaced or of another probability is still visible.

    Attributes:
        draws: name and number of rows of each draw so far; the whole shape for an operator that is not replaced.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator = torch.Generator().manual_seed(seed)
        self.draws: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(
        self, func: torch._ops.OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name in _TRIALS:
            return self._trial(name, args, kwargs)
        if name in (*_UNIFORM, *_NORMAL):
            return self._replaced(func, name, args, kwargs)
        result = func(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags and isinstance(result, Tensor):
            self.draws.append((name, tuple(result.shape)))
        return result

    def _trial(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Numbers near the probability instead of zero or one; divided by the probability they are near one."""
        given: Tensor = args[0]
        chance = args[1] if len(args) > 1 else kwargs.get("p", given if name == "bernoulli" else 0.5)
        rows = self._rows(name, given.shape, given.device)
        drawn = chance + chance * (1 - chance) * rows if given.is_floating_point() else (rows > 0)
        target = given if name.endswith("_") else torch.empty_like(given)
        return target.copy_(drawn)

    def _replaced(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        result: Tensor = func(*args, **kwargs)
        if not result.is_floating_point():
            return result
        rows = self._rows(name, result.shape, result.device)
        if name in _UNIFORM:
            low, high = _two(args) if name == "uniform_" else (0.0, 1.0)
            return result.copy_(low + (high - low) * (rows + 1) / 2)
        if name == "normal_":
            mean, deviation = _two(args)
            return result.copy_(mean + deviation * rows)
        return result.copy_(rows.abs() if name == "exponential_" else rows)

    def _rows(self, name: str, shape: torch.Size, device: torch.device) -> Tensor:
        """One number between -1 and 1 for each row; broadcasts to ``shape``."""
        rows = shape[:1]
        self.draws.append((name, tuple(rows)))
        values = torch.rand(tuple(rows), generator=self._generator, dtype=torch.float64) * 2 - 1
        return values.reshape(*rows, *[1] * (len(shape) - 1)).to(device)


def _two(args: tuple[Any, ...]) -> tuple[float, float]:
    """The two arguments after the tensor, by default 0 and 1."""
    return args[1] if len(args) > 1 else 0.0, args[2] if len(args) > 2 else 1.0


# Differences are relative to the largest entry of the tensor, or to this share of the largest of all tensors if that is
# larger: the mean of a batch norm's output and the gradient of a bias before a batch norm are only rounding.
_FLOOR = 1e-4


@dataclass(eq=False)
class TrainingStep:
    """The results of one step in training mode."""

    outputs: Leaves  # leaves of the outputs, and changed inputs
    buffers: dict[str, Tensor]  # the buffers after the call
    # The ``training`` flags of all modules after ``eval()`` and after ``train()``.
    modes: tuple[dict[str, bool], dict[str, bool]]
    draws: list[tuple[str, tuple[int, ...]]]  # the random draws, see :class:`RowChance`
    total: Tensor | None  # a weighted sum of all outputs that require a gradient, until the backward pass
    parameters: dict[str, nn.Parameter]  # the module's parameters by name
    dtype: torch.dtype  # the floating type of the evaluation

    def go_back(self) -> dict[str, Tensor | None]:
        """The gradient of ``total`` for each parameter by name; None for a parameter that it does not reach."""
        if self.total is not None:
            with modes(self.dtype, carry_nan=False, gradients=True):
                self.total.backward()  # type: ignore[no-untyped-call]
            self.total = None
        return {name: parameter.grad for name, parameter in self.parameters.items()}


def training_step(
    module: nn.Module,
    flags: nn.Module,
    probe: Probe,
    dtype: torch.dtype,
    *,
    seed: int,
    backward: bool,
    carry_nan: bool = False,
) -> TrainingStep:
    """Call a private copy in training mode; ``flags``: the network whose ``requires_grad`` flags apply."""
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
    leaves = leaves_of(output) | changed_inputs(sample, probe.in_dtype)
    buffers = dict(module.named_buffers(remove_duplicate=False))
    # A buffer whose shape changed is a cache.
    kept = {name: b.detach() for name, b in buffers.items() if b.shape == shapes.get(name)}
    return TrainingStep(leaves, kept, modes_set, chance.draws, total, parameters, dtype)


def _modes_of(module: nn.Module) -> dict[str, bool]:
    return {path: part.training for path, part in module.named_modules()}


def _weighted_sum(output: Any) -> Tensor | None:
    """A sum of all outputs that require a gradient, in which every entry has another weight."""
    total: Tensor | None = None
    for leaf in leaves_of(output, keep_history=True).values():
        if isinstance(leaf, Tensor) and leaf.requires_grad and leaf.is_floating_point():
            weights = 1 + torch.cos(torch.arange(leaf.numel(), device=leaf.device, dtype=leaf.dtype))
            part = (leaf.reshape(-1) * weights).mean()
            total = part if total is None else total + part
    return total


def forward_difference(masked: TrainingStep, narrow: TrainingStep, keep: Keep, tolerance: float) -> str:
    """Where two forward passes differ, as the beginning of a sentence, or ""; ``masked`` is the original's."""
    for call, ours, theirs in zip(("eval()", "train()"), masked.modes, narrow.modes, strict=True):
        wrong = next((path for path, mode in theirs.items() if ours.get(path, mode) is not mode), None)
        if wrong is not None:
            return f"{wrong or 'the network'}.training is {theirs[wrong]} after {call}, which differs"
    found = compare(masked.outputs, narrow.outputs)
    if not found.error <= tolerance:
        return found.describe(tolerance)
    return _tensor_difference(masked.buffers, narrow.buffers, keep, tolerance)


def gradient_difference(masked: TrainingStep, narrow: TrainingStep, keep: Keep, tolerance: float) -> str:
    """Where two backward passes differ, or ""."""
    ours, theirs = masked.go_back(), narrow.go_back()
    present = [{name: g for name, g in gradients.items() if g is not None} for gradients in (ours, theirs)]
    wrong = _tensor_difference(present[0], present[1], keep, tolerance)
    if wrong:
        return f"the gradient of {wrong}"
    for name in ours.keys() & theirs.keys():
        both = (ours[name], theirs[name])
        if len([g for g in both if g is None]) == 1 and any(bool(g.any()) for g in both if g is not None):
            return f"the gradient of {name!r} {'is missing' if both[1] is None else 'is unexpected'}, which differs"
    return ""


def _tensor_difference(full: Mapping[str, Tensor], narrow: Mapping[str, Tensor], keep: Keep, tolerance: float) -> str:
    """The first tensor whose kept entries differ, in words, or ""."""
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
