"""The probes that the network accepts, and the original's outputs, which the traced network must equal."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from fxprune.capture.decisions import refuses_sizes
from fxprune.capture.samples import Sample
from fxprune.errors import ProofError, described
from fxprune.proof.comparing import Leaves, compare, has_nan
from fxprune.proof.copies import TOLERANCE, out_of_memory, private_copy
from fxprune.proof.locating import first_layer
from fxprune.proof.probes import Probe, candidates
from fxprune.proof.running import evaluate, where

_SPECIALISED = "the traced network fits the sample's own sizes only"


@dataclass(frozen=True, eq=False)
class Trial:
    """A probe that the original accepts, and the original's outputs; empty if it was not run."""

    probe: Probe
    expected: Leaves


class RefusedError(ProofError):
    """The original, or the pruned network, does not run on the sample in the dtype of the proof."""


@dataclass(eq=False)
class Trials:
    """Chooses the probes, running private copies of the original and of the traced network."""

    original: nn.Module
    captured: nn.Module
    dtype: torch.dtype
    seed: int
    found: list[Trial] = field(default_factory=list)  # trials on which the traced network equals the original
    error: float = 0.0  # the worst relative error between the two
    notes: list[str] = field(default_factory=list)  # which probes are refused, and why
    diverges: str = ""  # at which other sizes the traced network differs from the original

    def run(self, sample: Sample, *, resize: bool = True, alone: bool = False) -> Trials:
        """Find a trial for the sample itself and, unless ``alone``, one for random inputs, resized if ``resize``.

        Raises:
            ProofError: the original refuses the sample, or the traced network differs from the original.
        """
        slots = candidates(sample, self.seed, resize=resize)
        for slot in slots[:1] if alone else slots:
            reasons: list[str] = []
            for probe in slot:
                reason = self._try(probe)
                if not reason:
                    break
                if not probe.guessed or reason == _SPECIALISED:
                    reasons.append(f"{probe.label}: {reason}")
            if not self.found:
                raise RefusedError(f"the original cannot be run on {reasons[-1]}")
            self.notes += [f"not run on {reason}" for reason in reasons[:1]]
        return self

    def __post_init__(self) -> None:
        self._original = private_copy(self.original, self.dtype)
        self._buffers = [(module, dict(module._buffers)) for module in self._original.modules()]
        # If the model's own forward is opaque, the model itself takes the place of the trace.
        self._captured = None if self.captured is self.original else private_copy(self.captured, self.dtype)

    def _try(self, probe: Probe) -> str:
        """Add a trial and return "", or return why the probe cannot be used."""
        self._empty_caches()
        try:
            expected = evaluate(self._original, probe, self.dtype, seed=self.seed)
        except Exception as error:  # any error means that the original refuses the probe
            if out_of_memory(error):
                raise
            return f"the original refuses it ({described(error)})"
        if has_nan(expected):
            return "the original answers NaN"
        trial = Trial(probe, expected)
        failure, error_found = self._difference(trial)
        # A decision on sizes that the trace does not record holds for the sample's sizes only.
        if failure and probe.resized and error_found > TOLERANCE[self.dtype]:
            self.diverges = f"{failure}"
        if failure == _SPECIALISED or (failure and probe.resized):
            return _SPECIALISED
        if failure:
            raise ProofError(f"traced network: {failure}{self._unsteadiness(trial) or self._place(trial)}")
        self.found.append(trial)
        self.error = max(self.error, error_found)
        return ""

    def _empty_caches(self) -> None:
        """Restore buffers whose shape changed at another size; those that keep their shape keep their new values."""
        for module, buffers in self._buffers:
            for name, held in buffers.items():
                now = module._buffers.get(name)
                if held is not None and now is not None and now.shape != held.shape:
                    module._buffers[name] = held

    def _difference(self, trial: Trial) -> tuple[str, float]:
        """How the traced network differs from the original, or "", and the relative error; 0 if it refuses."""
        if self._captured is None:
            return "", 0.0
        try:
            leaves = evaluate(self._captured, trial.probe, self.dtype, seed=self.seed)
        except Exception as error:
            if out_of_memory(error):
                raise
            if refuses_sizes(error):
                return _SPECIALISED, 0.0
            return f"it refuses {trial.probe.label} ({described(error)}){where(error)}", 0.0
        found = compare(trial.expected, leaves)
        if found.error <= TOLERANCE[self.dtype]:
            return "", found.error
        return f"{found.describe(TOLERANCE[self.dtype])} from the original on {trial.probe.label}", found.error

    def _place(self, trial: Trial) -> str:
        try:
            call = partial(evaluate, probe=trial.probe, dtype=self.dtype, seed=self.seed)
            return first_layer(self._original, self._captured or self._original, call)
        except Exception:  # a hint for the message is not worth a second error
            return ""

    def _unsteadiness(self, trial: Trial) -> str:
        """Why no graph can repeat the original's outputs, as the end of a message, or ""."""
        if self._answers_otherwise(trial, self.seed):
            return (
                "; the original's next output for the same input differs, so it keeps state between calls (in an "
                "attribute or a buffer) that a graph cannot hold"
            )
        if self._answers_otherwise(trial, self.seed + 1):
            return "; the original draws random numbers in eval mode, so its answers cannot be compared"
        return ""

    def _answers_otherwise(self, trial: Trial, seed: int) -> bool:
        again = evaluate(self._original, trial.probe, self.dtype, seed=seed)
        return not compare(trial.expected, again).error <= TOLERANCE[self.dtype]
