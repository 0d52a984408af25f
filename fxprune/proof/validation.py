"""The numeric checks of a proof, in one floating type."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from fxprune.capture.decisions import REFUSAL, asks_values, refuses_sizes
from fxprune.capture.samples import Sample
from fxprune.errors import ProofError, described
from fxprune.proof.comparing import Leaves, all_finite, compare, has_nan, kept_block
from fxprune.proof.conditions import UNCOMPARED_GRADIENTS, Conditions
from fxprune.proof.copies import TOLERANCE, out_of_memory, private_copy
from fxprune.proof.locating import MarkedRun, NodeKeep, first_difference
from fxprune.proof.masking import GAINS, Keep, overwrite_removed, randomise, removes_anything
from fxprune.proof.nan_carrying import PositionError
from fxprune.proof.probes import Probe, randomised
from fxprune.proof.rounding import is_steady, rounding_levels, without_rounding
from fxprune.proof.running import evaluate, where
from fxprune.proof.trials import RefusedError, Trial, Trials

# A change below this many tolerances cannot tell a removed entry from a kept one.
_VISIBLE = 100


@dataclass(frozen=True)
class Masking:
    """How the original is evaluated without its removed entries."""

    method: str  # its name in a :class:`Proof`
    note: str = ""  # a note for the reader if it was not the first choice
    stand_in: float = math.nan  # the value written over removed entries of parameters
    carries: bool = True  # whether removed entries propagate as NaN
    marks: bool = False  # whether values that depend on no parameter lose entries as the plan says


_ZEROS = Masking("masked", stand_in=0.0, carries=False)
_NANS = Masking("nan-carrying", "compared over the kept entries alone")
_MARKS = Masking(
    "nan-carrying",
    "compared over the kept entries alone, those of padding, expanded dims and constants as the plan says",
    marks=True,
)


@dataclass(frozen=True, eq=False)
class Case:
    """What is to be proven; ``keep`` has an entry for every parameter and buffer of ``captured``.

    ``alone``: at the sample's own sizes only, and with random parameters only if removal has no visible effect without;
    for a further graph of networks that are already proven.
    ``untrained``: why training mode cannot be compared, or ""; None if it need not be.
    ``trained``: the full-width graph of training mode; None if there is none to compare.
    """

    original: nn.Module
    captured: nn.Module
    pruned: nn.Module
    keep: Keep
    sample: Sample
    crosses_norm: bool
    node_keep: NodeKeep
    seed: int
    alone: bool = False
    untrained: str | None = ""
    trained: nn.Module | None = None


@dataclass
class Outcome:
    """The results so far."""

    method: str = ""
    error: float = 0.0
    vacuous: bool = False
    randomised: bool = False
    diverges: str = ""
    probes: list[Probe] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Failure:
    """A failed comparison and its trial."""

    text: str
    trial: Trial


_ELSEWHERE = "they take another branch, where values decide"


class Validation:
    """Runs original, traced, masked and pruned network one after another, one copy at a time in memory."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        self._case = case
        self._dtype = dtype
        self._tolerance = TOLERANCE[dtype]
        self._outcome = Outcome()
        self._maskings: list[Masking] = []
        self._rounding: dict[int, dict[str, float]] = {}

    def run(self) -> Outcome:
        """All numeric checks. Raises ProofError: one of them failed."""
        try:
            return self._attempt(resize=not self._case.alone)
        except ProofError:
            if self._case.alone or self._plan_fits_all(self._outcome.probes):
                raise
        diverges = self._outcome.diverges
        outcome = self._attempt(resize=False)
        outcome.diverges = diverges
        outcome.notes.append("not proven at another resolution: removed entries are no whole channels there")
        return outcome

    def _attempt(self, *, resize: bool) -> Outcome:
        case = self._case
        self._outcome = Outcome()
        self._maskings = [_NANS] if case.crosses_norm else [_ZEROS, _NANS]
        self._maskings += [_MARKS] if case.node_keep else []
        # Where NaN cannot be carried, as through sparse products, zeros may yet show all.
        self._maskings += [_ZEROS] if case.crosses_norm else []
        trials = self._trials(resize)
        answers = self._answers(private_copy(case.pruned, self._dtype), trials)
        change = self._check_outputs(lambda: private_copy(case.captured, self._dtype), trials, answers)
        if not removes_anything(case.captured, case.keep):
            self._outcome.notes.append("the plan removes nothing")
            self._check_conditions(_lightest(trials), trials, answers, math.inf)
            return self._outcome
        if not self._maskings[0].carries:
            self._check_positions(_lightest(trials).probe)
        self._check_conditions(_lightest(trials), trials, answers, change)
        if not case.alone or not self._is_visible(change):
            self._check_randomised(trials, change)
        return self._outcome

    def _trials(self, resize: bool) -> list[Trial]:
        case, outcome = self._case, self._outcome
        trials = Trials(case.original, case.captured, self._dtype, case.seed)
        trials.run(case.sample, resize=resize, alone=case.alone)
        outcome.error = max(outcome.error, trials.error)
        outcome.notes += trials.notes
        outcome.diverges = trials.diverges
        outcome.probes = [trial.probe for trial in trials.found]
        return trials.found

    def _plan_fits_all(self, probes: list[Probe]) -> bool:
        """Whether removal works at other resolutions too: a fixed reshape may mix pixels and channels there."""
        full = private_copy(self._case.captured, self._dtype)
        overwrite_removed(full, self._case.keep, math.nan)
        for probe in probes:
            if probe.resized:
                try:
                    if has_nan(evaluate(full, probe, self._dtype, seed=self._case.seed, carry_nan=True)):
                        return False
                except ProofError:
                    return False
                except Exception as error:  # an operator may reject NaN with any error: then this is unknown
                    if out_of_memory(error):
                        raise
                    return True
        return True

    def _answers(self, pruned: nn.Module, trials: list[Trial]) -> list[Leaves]:
        """The outputs of a private copy of the pruned network."""
        return [self._answer(pruned, trial) for trial in trials]

    def _answer(self, pruned: nn.Module, trial: Trial) -> Leaves:
        try:
            return evaluate(pruned, trial.probe, self._dtype, seed=self._case.seed)
        except Exception as error:
            kind = RefusedError if str(error).startswith(f"{REFUSAL}other precisions") else ProofError
            raise kind(
                f"pruned network: it refuses {trial.probe.label}, which the original takes "
                f"({described(error)}){where(error)}"
            ) from error

    def _check_outputs(self, full: Callable[[], nn.Module], trials: list[Trial], answers: list[Leaves]) -> float:
        """Compare with the masked original, made from the result of ``full``, in the first of the maskings that passes.

        Zero as the stand-in is tried first, then NaN, and last NaN plus the plan's kept indices for values that depend
        on no parameter.

        Returns:
            How much removal changes the outputs of the original.
        """
        failures: list[_Failure] = []
        for masking in self._maskings:
            change, failure = self._compare(full(), trials, answers, masking)
            if failure is None:
                self._outcome.method = masking.method
                self._outcome.notes += [f"{failures[0].text}; {masking.note}"] if failures else []
                self._maskings = self._maskings[self._maskings.index(masking) :]
                return change
            failures.append(failure)
        text = "; ".join(failure.text for failure in failures[:2])
        raise ProofError(text + self._place(full(), failures[-1]))

    def _compare(
        self, full: nn.Module, trials: list[Trial], answers: list[Leaves], masking: Masking
    ) -> tuple[float, _Failure | None]:
        """Turn ``full``, a private copy, into the masked original and compare it on all trials.

        Returns:
            The largest change of the outputs by masking, and the failure if any.
        """
        overwrite_removed(full, self._case.keep, masking.stand_in)
        change = worst = 0.0
        for trial, answer in zip(trials, answers, strict=True):
            try:
                masked = self._masked(full, trial, masking)
            except ProofError as error:
                return change, _Failure(str(error), trial)
            expected = kept_block(masked) if masking.carries else masked
            found = compare(expected, answer)
            if not found.error <= self._tolerance and trial.probe in self._outcome.probes:
                found = compare(*without_rounding(expected, answer, self._levels(trial, answer)))
            if not found.error <= self._tolerance:
                text = f"{found.describe(self._tolerance)} from the masked original on {trial.probe.label}"
                return change, _Failure(f"outputs ({masking.method}): {text}", trial)
            worst = max(worst, found.error)
            if trial.expected:
                change = max(change, compare(trial.expected, masked).error)
        self._outcome.error = max(self._outcome.error, worst)
        return change, None

    def _levels(self, trial: Trial, answer: Leaves) -> dict[str, float]:
        """The pruned network's outputs that are zero but for rounding, see :func:`rounding_levels`."""
        levels = self._rounding.get(id(trial))
        if levels is None:
            pruned = private_copy(self._case.pruned, self._dtype)
            levels = rounding_levels(pruned, trial.probe, answer, self._dtype, seed=self._case.seed)
            self._rounding[id(trial)] = levels
            if levels:
                self._outcome.notes.append(f"zero but for rounding on {trial.probe.label}: {', '.join(sorted(levels))}")
        return levels

    def _masked(self, full: nn.Module, trial: Trial, masking: Masking) -> Leaves:
        module: Callable[..., Any] = full
        if masking.marks and isinstance(full, fx.GraphModule):
            module = MarkedRun(full, self._case.node_keep)
        try:
            return evaluate(module, trial.probe, self._dtype, seed=self._case.seed, carry_nan=masking.carries)
        except Exception as error:
            if out_of_memory(error):
                raise
            text = str(error) if isinstance(error, ProofError) else described(error)
            raise ProofError(
                f"outputs ({masking.method}): the original, over its kept entries: {text}{where(error)}"
            ) from error

    def _place(self, full: nn.Module, failure: _Failure) -> str:
        """Where the two networks first differ, as the end of a message; "" if it cannot be found."""
        overwrite_removed(full, self._case.keep, math.nan)
        pruned = private_copy(self._case.pruned, self._dtype)
        place = first_difference(full, pruned, failure.trial.probe, self._dtype)
        return f"; they part at {place}" if place else ""

    def _check_positions(self, probe: Probe) -> None:
        """Check that every contraction pairs the kept entries of one operand with the same ones of the other.

        Outputs alone cannot show it: a deep layer of a fresh network may change them by less than rounding does. An
        operator that NaN-carrying cannot evaluate ends the check and is not a fault, because zeros agreed.
        """
        full = private_copy(self._case.captured, self._dtype)
        overwrite_removed(full, self._case.keep, math.nan)
        trial = Trial(probe, {})
        for masking in (masking for masking in (_NANS, _MARKS) if not masking.marks or self._case.node_keep):
            try:
                self._masked(full, trial, masking)
                return
            except ProofError as error:
                if not isinstance(error.__cause__, PositionError):
                    self._outcome.notes.append(f"positions not checked throughout: {error}")
                    return
                failure = error
        raise failure

    def _check_conditions(self, trial: Trial, trials: list[Trial], answers: list[Leaves], change: float) -> None:
        """Compare in training mode, other precisions and more rows; note what cannot be compared."""
        case = self._case
        answer = answers[trials.index(trial)]
        conditions = Conditions(
            case.original,
            case.pruned,
            case.keep,
            trial.probe,
            trial.expected,
            answer,
            self._dtype,
            self._tolerance,
            case.seed,
            "some removals are known from the plan alone" if self._maskings[0].marks else case.untrained,
            lambda: self._levels(trial, answer),
            not self._maskings[0].carries or self._is_visible(change),
            case.crosses_norm,
        )
        notes = [conditions.train()]
        if notes[0].startswith(UNCOMPARED_GRADIENTS) and case.trained is not None:
            # What removal does to gradients is not known, but the trace must have those of the original.
            whole = replace(conditions, pruned=case.trained, keep={}, tells=True, crosses=False)
            notes.append(whole.train())
        if not case.alone:
            notes += [conditions.own_precision(), conditions.half_precision()]
        self._outcome.notes += filter(None, notes)

    def _check_randomised(self, trials: list[Trial], change: float) -> None:
        """Repeat with random parameters, with which every layer affects the outputs."""
        pruned = private_copy(self._case.pruned, self._dtype)
        drawn = next((t.probe.drawn for t in trials if t.probe.drawn), "range" if len(trials) == 1 else "rows")
        probe = randomised(_lightest(trials).probe, self._case.seed, drawn)
        if self._by_values():  # other inputs might take another branch
            probe = _lightest(trials).probe
        seen, reason = 0.0, ""
        for gain in GAINS:
            seen, reason = self._on_random(pruned, gain, probe, change)
            if not reason:
                self._outcome.randomised = True
                break
        if not self._outcome.randomised:
            self._outcome.notes.append(f"not run on random parameters: {reason}")
        self._outcome.vacuous = not self._is_visible(max(change, seen))
        if self._outcome.vacuous:
            self._outcome.notes.append("vacuous: the removed entries do not reach the outputs")

    def _by_values(self) -> bool:
        """Whether the graph checks which branch the values of data select."""
        return isinstance(self._case.captured, fx.GraphModule) and asks_values(self._case.captured.graph)

    def _on_random(self, pruned: nn.Module, gain: float, probe: Probe, change: float) -> tuple[float, str]:
        """How much removal changes outputs with random parameters, and why they cannot be used, or ""."""
        full = self._randomised(pruned, gain)
        try:
            # The original is run only if removal is not yet known to have a visible effect.
            trial = Trial(probe, {} if self._is_visible(change) else self._expected(full, probe))
            answers = self._answers(pruned, [trial])
        except (ProofError, AssertionError) as error:
            if self._by_values() and refuses_sizes(error.__cause__ or error):
                return 0.0, _ELSEWHERE
            raise
        if not (all_finite(trial.expected) and all_finite(answers[0])):
            return 0.0, "they overflow"
        seen, failure = self._compare(full, [trial], answers, self._maskings[0])
        if failure and self._by_values() and REFUSAL in failure.text:
            return seen, _ELSEWHERE
        if failure and not self._is_steady(pruned, probe, answers[0]):
            return seen, "they magnify rounding"
        return (self._check_on_random(pruned, gain, trial, answers) if failure else seen), ""

    def _is_visible(self, change: float) -> bool:
        return change >= _VISIBLE * self._tolerance

    def _is_steady(self, pruned: nn.Module, probe: Probe, answer: Leaves) -> bool:
        return is_steady(pruned, probe, answer, self._dtype, self._tolerance, seed=self._case.seed)

    def _expected(self, full: nn.Module, probe: Probe) -> Leaves:
        return evaluate(full, probe, self._dtype, seed=self._case.seed)

    def _check_on_random(self, pruned: nn.Module, gain: float, trial: Trial, answers: list[Leaves]) -> float:
        try:
            return self._check_outputs(lambda: self._randomised(pruned, gain), [trial], answers)
        except ProofError as error:
            raise ProofError(f"with random parameters, {error}") from error

    def _randomised(self, pruned: nn.Module, gain: float) -> nn.Module:
        """A copy of the full-width network with random parameters; their kept entries are copied to ``pruned``."""
        full = private_copy(self._case.captured, self._dtype)
        randomise(full, pruned, self._case.keep, self._case.seed, gain)
        return full


def _lightest(trials: list[Trial]) -> Trial:
    """The trial with the fewest values."""
    return min(trials, key=lambda trial: sum(t.numel() for t in trial.probe.sample.tensors))
