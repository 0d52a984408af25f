"""The probes that fit the network, with the original's answers, and the check that the traced network gives the same."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import fx, nn

from fxprune.errors import ProofError
from fxprune.samples import Sample

from .comparing import Leaves, compare, has_nan
from .copies import private_copy
from .precision import TOLERANCE, out_of_memory
from .probes import Probe, candidates
from .running import evaluate, where

__all__ = ["Trial", "Trials"]


@dataclass(frozen=True, eq=False)
class Trial:
    """A probe that the original accepts, and the original's answer."""

    probe: Probe
    expected: Leaves


@dataclass(eq=False)
class Trials:
    """Chooses the probes.

    Attributes:
        found: the trials on which the traced network equals the original.
        error: the worst relative error between the two.
        notes: which probes the original refuses.
    """

    original: nn.Module
    captured: fx.GraphModule
    dtype: torch.dtype
    seed: int
    found: list[Trial] = field(default_factory=list)
    error: float = 0.0
    notes: list[str] = field(default_factory=list)

    def run(self, sample: Sample) -> None:
        """Find a trial for the sample itself and one for random inputs.

        Raises:
            ProofError: the original refuses the sample, or the traced network differs from the original.
        """
        original, captured = private_copy(self.original, self.dtype), private_copy(self.captured, self.dtype)
        for slot in candidates(sample, self.seed):
            reasons = [self._refusal(original, captured, probe) for probe in _until_accepted(slot, self.found)]
            if all(reasons):
                if not self.found:
                    raise ProofError(f"the original cannot be run on {slot[-1].label}: {reasons[-1]}")
            if reasons[0]:
                self.notes.append(f"not run on {slot[0].label}: {reasons[0]}")
