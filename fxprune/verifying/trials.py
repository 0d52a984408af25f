"""The probes that the original accepts, with its answers, and the check that the traced network gives the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn

from fxprune.errors import ProofError
from fxprune.samples import Sample

from .comparing import Leaves, compare, has_nan
from .copies import private_copy
from .precision import TOLERANCE, out_of_memory
from .probes import Probe, candidates
from .running import evaluate, where

__all__ = ["Trial", "accepted", "check_capture"]


@dataclass(frozen=True, eq=False)
class Trial:
    """A probe that the original accepts, and the original's answer."""

    probe: Probe
    expected: Leaves


def accepted(original: nn.Module, sample: Sample, dtype: torch.dtype, seed: int) -> tuple[list[Trial], list[str]]:
    """Run the original on the candidate probes; the accepted ones, and notes on those refused.

    Raises:
        ProofError: the original refuses the sample itself, or answers it with NaN.
    """
    copy = private_copy(original, dtype)
    trials: list[Trial] = []
    notes: list[str] = []
    for slot in candidates(sample, seed):
        trial, refusal = _first_accepted(copy, slot, dtype, seed)
        if trial is not None:
            trials.append(trial)
        elif not trials:
            raise ProofError(f"the original cannot be run on {slot[-1].label}: {refusal}")
        if refusal:
            notes.append(f"not run on {slot[0].label}: {refusal}")
    return trials, notes


def _first_accepted(module: nn.Module, slot: list[Probe], dtype: torch.dtype, seed: int) -> tuple[Trial | None, str]:
    """The first trial of ``slot`` that runs, and why the very first one did not."""
    refusal = ""
    for probe in slot:
        try:
            leaves = evaluate(module, probe, dtype, seed=seed)
        except Exception as error:  # any exception is a refusal
            if out_of_memory(error):
                raise
            reason = f"the original refuses it ({type(error).__name__}: {_first_line(error)})"
        else:
            if not has_nan(leaves):
                return Trial(probe, leaves), refusal
            reason = "the original answers NaN"
        refusal = refusal or reason
    return None, refusal


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else ""


def check_capture(
    original: nn.Module, captured: fx.GraphModule, trials: list[Trial], dtype: torch.dtype, seed: int
) -> tuple[list[Trial], float, list[str]]:
    """Keep the trials on which the traced network equals the original.

    A trace may be specialised to the sample's resolution, so there a difference only drops the trial.

    Returns:
        The trials kept, the worst relative error among them, and notes.

    Raises:
        ProofError: the traced network differs at the sample's own resolution.
    """
    copy = private_copy(captured, dtype)
    kept: list[Trial] = []
    notes: list[str] = []
    worst = 0.0
    for trial in trials:
        failure, error = _capture_failure(copy, trial, dtype, seed)
        if not failure:
            kept.append(trial)
            worst = max(worst, error)
        elif trial.probe.larger:
            notes.append(f"not proven on {trial.probe.label}: the traced network fits the sample's resolution only")
        else:
            raise ProofError(f"traced network: {failure}{_randomness(original, trial, dtype, seed)}")
    return kept, worst, notes


def _capture_failure(module: nn.Module, trial: Trial, dtype: torch.dtype, seed: int) -> tuple[str, float]:
    try:
        leaves = evaluate(module, trial.probe, dtype, seed=seed)
    except Exception as error:
        if out_of_memory(error):
            raise
        return f"it refuses {trial.probe.label} ({type(error).__name__}: {_first_line(error)}){where(error)}", 0.0
    found = compare(trial.expected, leaves)
    if found.error <= TOLERANCE[dtype]:
        return "", found.error
    return f"{found.describe(TOLERANCE[dtype])} from the original on {trial.probe.label}", found.error


def _randomness(original: nn.Module, trial: Trial, dtype: torch.dtype, seed: int) -> str:
    copy = private_copy(original, dtype)
    first, second = (evaluate(copy, trial.probe, dtype, seed=s) for s in (seed, seed + 1))
    if compare(first, second).error > TOLERANCE[dtype]:
        return "; the original draws random numbers in eval mode, so its answers cannot be compared"
    return ""
