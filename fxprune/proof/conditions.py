"""Comparisons beyond float64 in eval mode: in training mode, in other precisions, and on a larger batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fxprune.capture.decisions import refuses_sizes
from fxprune.capture.samples import Sample
from fxprune.errors import ProofError, described
from fxprune.proof.comparing import Difference, Leaves, all_finite, compare, is_float, kept_block, leaves_of
from fxprune.proof.copies import out_of_memory, private_copy, promoted
from fxprune.proof.masking import Keep, overwrite_removed
from fxprune.proof.probes import Probe
from fxprune.proof.rounding import move_parameters
from fxprune.proof.running import called, changed_inputs, evaluate, where
from fxprune.proof.training import TrainingStep, forward_difference, gradient_difference, training_step
from fxprune.util.copies import MADE_TENSOR, deep_copy

# Rows of the larger batch, and the most input values that it may have: networks that need large inputs are left out.
_BATCH, _MOST_VALUES = 17, 400_000
# The largest relative error by type, unless the original's own error is nearly as large.
_ROUGH = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
_OWN_ERRORS = 10
# The largest relative error of a gradient.
_GRADIENTS = 1e-6
# How a note begins if only the forward pass of training was compared.
UNCOMPARED_GRADIENTS = "gradients not compared"


class _DiffersError(Exception):
    """The two networks differ with one stand-in; another stand-in may be the right one."""


class _RefusedError(Exception):
    """Nothing can be compared with one stand-in."""


@dataclass(frozen=True, eq=False)
class Conditions:
    """Compares the pruned network with the original under further conditions, on one small probe."""

    original: nn.Module  # the caller's model; only read
    pruned: nn.Module  # the network to be judged; only read
    keep: Keep  # kept indices of every tensor
    probe: Probe  # inputs on which the two have already been compared
    expected: Leaves  # the original's outputs there
    answer: Leaves  # the pruned network's outputs there, already compared with the masked original
    dtype: torch.dtype  # the floating type of the comparison so far
    tolerance: float
    seed: int  # of random numbers
    untrained: str | None  # why training mode is not compared, or ""; None if another proof compares it
    # Returns, by path, the magnitude below which an output is only rounding.
    levels: Callable[[], dict[str, float]]
    tells: bool  # whether equal outputs prove zeros the right stand-in: not if removal has no visible effect
    # Whether removal crosses a norm or a softmax: gradients may show zeros that outputs hide (the place of a maximum).
    crosses: bool = False

    def train(self) -> str:
        """Compare one step of training.

        Returns:
            A note on what could not be compared, and why; or "".

        Raises:
            ProofError: the pruned network cannot train although the original can, or the step differs.
        """
        if self.untrained is None:
            return ""
        if self.untrained:
            return f"not compared in training mode: {self.untrained}"
        differing, refused = [], []
        # Zeros come first if they can be the stand-in, because gradients can be compared only with zeros.
        for stand_in in (0.0, math.nan) if self.tells else (math.nan, 0.0):
            try:
                return self._trained(stand_in)
            except _DiffersError as error:
                differing.append(str(error))
            except _RefusedError as error:
                refused.append(str(error))
        if refused:
            return f"not compared in training mode: {refused[0]}"
        raise _error(f"{differing[0]} from the masked original on {self.probe.label}")

    def _trained(self, stand_in: float) -> str:
        """Compare one step of the original, ``stand_in`` in its removed entries, with one of the pruned network."""
        carries = math.isnan(stand_in)
        try:
            masked = self._step(self.original, stand_in)
        except Exception as error:  # the original's code, in a mode that it may not support
            if out_of_memory(error):
                raise
            raise _RefusedError(f"the original cannot be run ({described(error)})") from error
        narrow = self._narrow_step(backward=not carries)
        if [name for name, _ in masked.draws] != [name for name, _ in narrow.draws]:
            raise _error(f"the pruned network draws {_names(narrow)}, the original {_names(masked)}")
        if masked.draws != narrow.draws:
            raise _RefusedError("random draws depend on the removed entries")
        if carries:
            masked.outputs = kept_block(masked.outputs)
        outputs = masked.outputs
        masked.outputs, narrow.outputs = self._without_rounding(masked.outputs, narrow.outputs)
        wrong = forward_difference(masked, narrow, self.keep, self.tolerance)
        if wrong:
            raise _DiffersError(wrong)
        if carries:
            return f"{UNCOMPARED_GRADIENTS}: zeros cannot stand in for the removed entries"
        tells = self.tells and not self.crosses and len(masked.outputs) == len(outputs)
        return self._back(masked, narrow, tells=tells)

    def _back(self, masked: TrainingStep, narrow: TrainingStep, *, tells: bool) -> str:
        """Compare gradients; ``tells``: whether equal outputs prove zeros to be the right stand-in."""
        try:
            masked.go_back()
        except Exception as error:  # in-place writes may prevent it
            raise _RefusedError(f"the original cannot go backwards ({described(error)})") from error
        try:
            wrong = gradient_difference(masked, narrow, self.keep, _GRADIENTS)
        except Exception as error:
            raise _error(f"the pruned network cannot go backwards, unlike the original ({described(error)})") from error
        if not wrong:
            return ""
        if not tells:
            raise _RefusedError("outputs do not show whether zeros can stand in, so gradients have no reference")
        if not self._is_steady(narrow):
            return f"{UNCOMPARED_GRADIENTS}: they magnify rounding"
        raise _error(f"{wrong} from the masked original on {self.probe.label}")

    def _is_steady(self, narrow: TrainingStep) -> bool:
        """Whether rounding changes gradients by less than the tolerance, see :mod:`.rounding`."""
        unit: float = torch.finfo(self.dtype).eps
        moved = self._narrow_step(backward=True, change=unit**0.5)
        # A gradient that is only rounding changes by a share of itself as soon as anything changes.
        return not gradient_difference(narrow, moved, {}, min(_GRADIENTS / (30 * unit**0.5), 0.01))

    def _without_rounding(self, masked: Leaves, narrow: Leaves) -> tuple[Leaves, Leaves]:
        """The outputs of two networks without those that are only rounding in eval mode, unless all agree."""
        if compare(masked, narrow).error <= self.tolerance:
            return masked, narrow
        gone = self.levels()
        return _without(masked, gone), _without(narrow, gone)

    def _step(self, original: nn.Module, stand_in: float) -> TrainingStep:
        full = private_copy(original, self.dtype)
        overwrite_removed(full, self.keep, stand_in)
        carries = math.isnan(stand_in)
        return training_step(
            full, original, self.probe, self.dtype, seed=self.seed, backward=not carries, carry_nan=carries
        )

    def _narrow_step(self, *, backward: bool, change: float = 0.0) -> TrainingStep:
        narrow = private_copy(self.pruned, self.dtype)
        if change:
            move_parameters(narrow, change, self.seed)
        try:
            return training_step(narrow, self.pruned, self.probe, self.dtype, seed=self.seed, backward=backward)
        except Exception as error:
            raise _error(
                f"the pruned network refuses {self.probe.label}, which the original takes ({described(error)})"
                f"{where(error)}"
            ) from error

    def own_precision(self) -> str:
        """Compare in the network's own floating types, on more rows if inputs are small; returns a note or ""."""
        sample, rows = self.probe.sample, self.probe.batch_size or 0
        values = sum(tensor.numel() for tensor in sample.tensors)
        if not 0 < rows < _BATCH:
            return self._compare(self.probe, None, None)
        if values * _BATCH > _MOST_VALUES * rows:
            note = self._compare(self.probe, None, None)
            return "; ".join(filter(None, (note, f"not run on {_BATCH} rows: the inputs are large")))
        probe = replace(self.probe, label=f"{self.probe.label}, {_BATCH} rows", sample=sample.with_batch(_BATCH))
        return self._compare(probe, None, rows)

    def half_precision(self) -> str:
        """Compare in bfloat16, in which the pruned network must run if the original does."""
        return self._compare(self.probe, torch.bfloat16, None)

    def _compare(self, probe: Probe, dtype: torch.dtype | None, rows: int | None) -> str:
        name = f"in {str(dtype).removeprefix('torch.')}" if dtype else "in its own precision"
        try:
            ours = self._plain(self.original, probe, dtype)
        except Exception as error:  # whatever it raises, the original cannot run like this
            if out_of_memory(error):
                raise
            return f"not run {name} on {probe.label}: the original refuses it ({described(error)})"
        try:
            theirs = self._plain(self.pruned, probe, dtype)
        except Exception as error:
            if refuses_sizes(error):
                return f"not run {name} on {probe.label}: the pruned network fits other sizes"
            raise ProofError(
                f"{name}: the pruned network refuses {probe.label}, which the original takes ({described(error)})"
                f"{where(error)}"
            ) from error
        wrong = _kind_difference(ours, theirs, narrower=dtype is not None or not _alike(self.expected, self.answer))
        if wrong:
            raise ProofError(f"{name}: {wrong} on {probe.label}")
        # The number of entries that meet a condition on values may differ after removal, or in another type.
        loose = {p for p, t in self.expected.items() if _shape(t) != _shape(self.answer.get(p))}
        if dtype is not None:
            loose |= {p for p, t in self.answer.items() if _shape(t) != _shape(theirs.get(p))}
        expected, answer = (_tiled(_without(leaves, loose), rows) for leaves in (self.expected, self.answer))
        try:
            return self._judge(name, probe, (expected, _without(ours, loose)), (answer, _without(theirs, loose)))
        except ProofError:
            if rows is None:
                raise
        # Rows may depend on one another only after removal, or more strongly: compare with float64 at this batch.
        expected, answer = (_without(leaves, loose) for leaves in self._exactly(probe))
        return self._judge(name, probe, (expected, _without(ours, loose)), (answer, _without(theirs, loose)))

    def _exactly(self, probe: Probe) -> tuple[Leaves, Leaves]:
        """Both networks' outputs in the proof's type, after checking the pruned one's against the masked original's."""
        answer = evaluate(private_copy(self.pruned, self.dtype), probe, self.dtype, seed=self.seed)
        found = []
        for stand_in in (0.0, math.nan):
            full, carries = private_copy(self.original, self.dtype), math.isnan(stand_in)
            overwrite_removed(full, self.keep, stand_in)
            masked = evaluate(full, probe, self.dtype, seed=self.seed, carry_nan=carries)
            masked, narrow = self._without_rounding(kept_block(masked) if carries else masked, answer)
            found.append(compare(masked, narrow))
            if found[-1].error <= self.tolerance:
                original = private_copy(self.original, self.dtype)
                return evaluate(original, probe, self.dtype, seed=self.seed), answer
        raise ProofError(f"{found[0].describe(self.tolerance)} from the masked original on {probe.label}")

    def _judge(self, name: str, probe: Probe, ours: tuple[Leaves, Leaves], theirs: tuple[Leaves, Leaves]) -> str:
        """Check that the pruned network is as near to its own float64 outputs as the original is to its own."""
        if not (all_finite(ours[1]) and _alike(*ours)):
            return (
                f"values not compared {name} on {probe.label}: the original's rows depend on one another, or overflow"
            )
        rough = max((_ROUGH.get(t.dtype, 0.1) for t in ours[1].values() if is_float(t)), default=0.0)
        known, found = _error_between(*ours), _error_between(*theirs)
        if not found.error <= rough:
            gone = self.levels()
            found = _error_between(_without(theirs[0], gone), _without(theirs[1], gone))
        narrow = min(
            (t.dtype for t in ours[1].values() if is_float(t)), key=lambda d: -torch.finfo(d).eps, default=None
        )
        if known.error > rough and found.error * _OWN_ERRORS < known.error and narrow:
            moved = self._movement(self.original, probe, ours[0], torch.finfo(narrow).eps)
            gone = self.levels()
            apart = _error_between(_without(ours[0], gone), _without(ours[1], gone)).error
            if max(moved * _OWN_ERRORS, rough) < apart:
                text = f"the original's answer differs by {known.error:.3g} relative from its own in float64"
                raise ProofError(f"{name}: {text}, and the pruned network's does not, on {probe.label}")
        limit = max(_ROUGH.get(narrow or torch.float32, 0.1), _OWN_ERRORS * known.error)
        if narrow and not found.error <= limit:
            limit = max(limit, _OWN_ERRORS * self._movement(self.pruned, probe, theirs[0], torch.finfo(narrow).eps))
        if limit >= 1:
            return f"values not compared {name}: rounding alone makes an error of {limit / _OWN_ERRORS:.1g} there"
        if not found.error <= limit:
            raise ProofError(f"{name}: {found.describe(limit)} from its answer in float64 on {probe.label}")
        return ""

    def _movement(self, network: nn.Module, probe: Probe, answer: Leaves, change: float) -> float:
        """How far a network's outputs change in the proof's type if its parameters change by ``change``."""
        copy = private_copy(network, self.dtype)
        move_parameters(copy, change, self.seed)
        return _error_between(answer, evaluate(copy, probe, self.dtype, seed=self.seed)).error

    def _plain(self, module: nn.Module, probe: Probe, dtype: torch.dtype | None) -> Leaves:
        """The outputs of a private copy without any promotion."""

        def cast(tensor: Tensor) -> Tensor:
            return promoted(tensor, tensor.dtype if dtype is None else dtype)

        # The original makes these in the type written in its source, whatever type it is converted to.
        made = {id(t) for name, t in module.named_buffers() if f"_{MADE_TENSOR}" in name}

        def fresh(tensor: Tensor) -> Tensor:
            if id(tensor) in made:
                return promoted(tensor, tensor.dtype)
            if tensor.layout is not torch.strided:
                return tensor.detach().clone()
            data = cast(tensor)
            return nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data

        duplicate = deep_copy(module, fresh).eval()
        sample = probe.sample.map(cast)
        torch.manual_seed(self.seed)
        with torch.no_grad():
            leaves = leaves_of(called(duplicate, sample))
        return leaves | changed_inputs(sample, lambda wide: probe.sample.map(lambda t: promoted(cast(t), wide)))


def _error(text: str) -> ProofError:
    return ProofError(f"in training mode: {text}")


def _names(step: TrainingStep) -> str:
    names = [name for name, _ in step.draws]
    return f"{len(names)} random numbers ({', '.join(dict.fromkeys(names))})" if names else "no random number"


def _shape(value: object) -> torch.Size | None:
    return value.shape if isinstance(value, Tensor) else None


def _kind_difference(ours: Leaves, theirs: Leaves, *, narrower: bool) -> str:
    """The first leaf of another type or shape, in words, or ""."""
    for path in (*ours, *(path for path in theirs if path not in ours)):
        left, right = ours.get(path), theirs.get(path)
        if isinstance(left, Tensor) != isinstance(right, Tensor):
            return f"only one of the two networks gives {path}"
        if isinstance(left, Tensor) and isinstance(right, Tensor):
            if left.dtype != right.dtype:
                return f"{path} is {left.dtype} and became {right.dtype}"
            if left.shape != right.shape and not narrower:
                return f"{path} is {tuple(left.shape)} and became {tuple(right.shape)}"
    return ""


def _tiled(leaves: Leaves, rows: int | None) -> Leaves:
    """The leaves for a sample whose rows are repeated, if each row is computed independently."""
    if rows is None:
        return leaves
    tensors = {p: t for p, t in leaves.items() if isinstance(t, Tensor) and t.ndim and t.shape[0] == rows}
    return leaves | {path: Sample((t,), {}).with_batch(_BATCH).args[0] for path, t in tensors.items()}


def _without(leaves: Leaves, gone: Container[str]) -> Leaves:
    return {path: leaf for path, leaf in leaves.items() if path not in gone}


def _alike(expected: Leaves, found: Leaves) -> bool:
    shapes = ({p: t.shape for p, t in leaves.items() if isinstance(t, Tensor)} for leaves in (expected, found))
    return len({tuple(sorted(s.items())) for s in shapes}) == 1


def _error_between(expected: Leaves, found: Leaves) -> Difference:
    """The error of floating outputs only; results of comparing values may differ in a narrow type."""
    floats = [p for p, t in expected.items() if is_float(t) and is_float(found.get(p))]
    return compare({p: expected[p].double() for p in floats}, {p: found[p].double() for p in floats})
