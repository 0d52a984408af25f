"""The numeric checks of a proof, in one floating type."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from fxprune.errors import ProofError
from fxprune.samples import Sample

from .comparing import Difference, Leaves, compare, has_nan, kept_block
from .copies import private_copy
from .locating import first_difference
from .masking import hides_its_weights, overwrite_removed, randomise, removes_anything
from .precision import TOLERANCE, out_of_memory
from .probes import Probe, randomised
from .running import evaluate, where
from .selecting import Keep
from .trials import Trial, Trials

__all__ = ["Case", "Outcome", "Validation"]

# A change below this many tolerances cannot tell a removed entry from a kept one.
_VISIBLE = 100

_MASKED, _CARRYING = "masked", "nan-carrying"
_STAND_IN = {_MASKED: 0.0, _CARRYING: math.nan}


@dataclass(frozen=True, eq=False)
class Case:
    """What is to be proven; ``keep`` has an entry for every parameter and buffer of ``captured``."""

    original: nn.Module
    captured: fx.GraphModule
    pruned: nn.Module
    keep: Keep
    sample: Sample
    crosses_norm: bool
    seed: int


@dataclass
class Outcome:
    """What has been found so far."""

    method: str = _MASKED
    error: float = 0.0
    vacuous: bool = False
    randomised: bool = False
    probes: list[Probe] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Validation:
    """Runs original, traced, masked and pruned network one after another, one copy at a time in memory."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        self._case = case
        self._dtype = dtype
        self._tolerance = TOLERANCE[dtype]
        self._outcome = Outcome(_CARRYING if case.crosses_norm else _MASKED)

    def run(self) -> Outcome:
        """All numeric checks.

        Raises:
            ProofError: one of them failed.
        """
        case = self._case
        trials = self._trials()
        answers = self._answers(private_copy(case.pruned, self._dtype), trials)
        change = self._check_outputs(lambda: private_copy(case.captured, self._dtype), trials, answers)
        if not removes_anything(case.captured, case.keep):
            self._outcome.notes.append("the plan removes nothing")
        elif change < _VISIBLE * self._tolerance or hides_its_weights(case.captured):
            self._check_randomised(trials, change)
        return self._outcome

    def _trials(self) -> list[Trial]:
        case, outcome = self._case, self._outcome
        trials = Trials(case.original, case.captured, self._dtype, case.seed).run(case.sample)
        outcome.error = max(outcome.error, trials.error)
        outcome.notes += trials.notes
        outcome.probes = [trial.probe for trial in trials.found]
        return trials.found

    def _answers(self, pruned: nn.Module, trials: list[Trial]) -> list[Leaves]:
        """The outputs of a private copy of the pruned network."""
        return [self._answer(pruned, trial) for trial in trials]

    def _answer(self, pruned: nn.Module, trial: Trial) -> Leaves:
        try:
            return evaluate(pruned, trial.probe, self._dtype, seed=self._case.seed)
        except Exception as error:
            raise ProofError(
                f"pruned network: it refuses {trial.probe.label}, which the original takes "
                f"({type(error).__name__}: {error}){where(error)}"
            ) from error

    def _check_outputs(self, full: Callable[[], nn.Module], trials: list[Trial], answers: list[Leaves]) -> float:
        """Compare with the masked original, made from what ``full`` returns.

        Returns:
            How far removing changes the outputs of the original.
        """
        before = ""
        cause: ProofError | None = None
        if self._outcome.method == _MASKED:
            change, failure = self._compare(full(), trials, answers, _MASKED)
            if not failure:
                return change
            before = f"with removed entries of the original set to zero, {failure}"
        try:
            change, failure = self._compare(full(), trials, answers, _CARRYING)
        except ProofError as error:
            failure, cause = str(error), error
        if failure:
            raise ProofError(f"{before}; {failure}" if before else failure) from cause
        if before:
            self._outcome.notes.append(
                f"{before}: what is removed does not stay zero until it is read, or the outputs themselves are "
                "narrower; compared over the kept entries alone"
            )
        self._outcome.method = _CARRYING
        return change

    def _compare(self, module: nn.Module, trials: list[Trial], answers: list[Leaves], method: str) -> tuple[float, str]:
        """Turn the full-width ``module``, a private copy, into the masked original and compare on all trials.

        Returns:
            The largest change that masking makes to the outputs, and what failed, or "".
        """
        overwrite_removed(module, self._case.keep, _STAND_IN[method])
        change = 0.0
        worst = 0.0
        for trial, answer in zip(trials, answers, strict=True):
            masked = self._masked(module, trial, method)
            found = compare(kept_block(masked) if method == _CARRYING else masked, answer)
            if not found.error <= self._tolerance:
                return change, self._failure(module, trial, found, method)
            worst = max(worst, found.error)
            change = max(change, compare(trial.expected, masked).error)
        self._outcome.error = max(self._outcome.error, worst)
        return change, ""

    def _masked(self, module: nn.Module, trial: Trial, method: str) -> Leaves:
        carrying = method == _CARRYING
        try:
            return evaluate(module, trial.probe, self._dtype, seed=self._case.seed, carry_nan=carrying)
        except Exception as error:
            if out_of_memory(error):
                raise
            text = str(error) if isinstance(error, ProofError) else f"{type(error).__name__}: {error}"
            raise ProofError(
                f"outputs ({method}): the original, over its kept entries: {text}{where(error)}"
            ) from error

    def _failure(self, module: nn.Module, trial: Trial, found: Difference, method: str) -> str:
        if method == _MASKED:
            return found.describe(self._tolerance)
        place = first_difference(module, private_copy(self._case.pruned, self._dtype), trial.probe, self._dtype)
        text = f"outputs ({method}): {found.describe(self._tolerance)} from the masked original on {trial.probe.label}"
        return f"{text}; they part at {place}" if place else text

    def _check_randomised(self, trials: list[Trial], change: float) -> None:
        """Repeat with random parameters, in which no removed entry is without effect."""
        pruned = private_copy(self._case.pruned, self._dtype)
        probe = randomised(trials[0].probe, self._case.seed)
        trial = Trial(probe, evaluate(self._randomised(pruned), probe, self._dtype, seed=self._case.seed))
        seen = 0.0
        if not has_nan(trial.expected):
            answers = self._answers(pruned, [trial])
            try:
                seen = self._check_outputs(lambda: self._randomised(pruned), [trial], answers)
            except ProofError as error:
                raise ProofError(f"with random parameters, {error}") from error
            self._outcome.randomised = True
        self._outcome.vacuous = max(change, seen) < _VISIBLE * self._tolerance
        if self._outcome.vacuous:
            self._outcome.notes.append("vacuous: the removed entries do not reach the outputs")

    def _randomised(self, pruned: nn.Module) -> fx.GraphModule:
        """A copy of the full-width network with random parameters, and the kept ones of them in ``pruned``."""
        full = private_copy(self._case.captured, self._dtype)
        randomise(full, pruned, self._case.keep, self._case.seed)
        return full
