"""What an exported file is run on, and its answers compared with the network's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxprune.errors import ExportError
from fxprune.samples import Sample
from fxprune.verifying.comparing import Leaves, compare, leaves_of
from fxprune.verifying.probes import Probe, candidates

__all__ = ["Check", "find_checks", "tensors_of", "worst_error"]

# What is computed in another order by another runtime differs by rounding.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_HALF = 2e-2


@dataclass(frozen=True, eq=False)
class Check:
    """Inputs and what the network answers.

    Attributes:
        probe: the inputs.
        expected: the tensors of the output, in order.
        tolerance: the largest relative difference that is accepted.
    """

    probe: Probe
    expected: Leaves
    tolerance: float

    @property
    def tells(self) -> bool:
        """Whether any output is not zero."""
        return any(bool((leaf != 0).any()) for leaf in self.expected.values())


def find_checks(network: nn.Module, sample: Sample, seed: int = 0) -> list[Check]:
    """What the network itself takes: the sample, other values at another batch size, and these at another resolution.

    Raises:
        ExportError: the network refuses the sample.
    """
    # torch.export takes a batch of one for a size that never changes.
    plain, resized = (candidates(sample, seed, resize=resize, smallest=2) for resize in (False, True))
    slots = [*plain, [probe for probe in resized[1][:1] if probe.resized]]
    found: list[Check] = []
    for slot in slots:
        reason = ""
        for probe in slot:
            try:
                found.append(_check(network, probe))
                break
            except Exception as error:  # the network's own code: anything may come out of it
                reason = f"{type(error).__name__}: {error}"
        if not found:
            raise ExportError(f"the network cannot be run on its sample ({reason:.300}): give a sample_input that fits")
    return found


def _check(network: nn.Module, probe: Probe) -> Check:
    sample = probe.sample.map(torch.Tensor.clone)
    with torch.no_grad():
        expected = tensors_of(sample.call(lambda *args, **kwargs: nn.Module.__call__(network, *args, **kwargs)))
    floats = [leaf.dtype for leaf in expected.values() if leaf.is_floating_point()]
    return Check(probe, expected, max([_TOLERANCE.get(dtype, _HALF) for dtype in floats], default=0.0))


def tensors_of(output: Any) -> Leaves:
    """The tensors of an output under their positions, as some formats keep nothing else of its structure."""
    tensors = [leaf for leaf in leaves_of(output).values() if isinstance(leaf, torch.Tensor)]
    return {f"output {number}": tensor for number, tensor in enumerate(tensors)}


def worst_error(run: Callable[[Sample], Leaves], checks: Sequence[Check]) -> float:
    """The largest relative difference of ``run`` over all checks.

    Raises:
        ExportError: a difference is above its tolerance, or ``run`` refuses an input.
    """
    worst = 0.0
    for check in checks:
        try:
            with torch.no_grad(), contextlib.redirect_stdout(None):
                result = run(check.probe.sample.map(torch.Tensor.clone))
        except Exception as error:
            raise ExportError(f"it refuses {check.probe.label} ({type(error).__name__}: {error!s:.300})") from error
        difference = compare(check.expected, result)
        if not difference.error <= check.tolerance:
            raise ExportError(f"{difference.describe(check.tolerance)} on {check.probe.label}")
        worst = max(worst, difference.error)
    return worst
