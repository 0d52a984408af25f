"""The proof: translation validation of the pruned network against the original, and its result."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from fxprune.capture.samples import Sample
from fxprune.errors import ProofError
from fxprune.proof.attributes import check_attributes, check_code
from fxprune.proof.copies import TOLERANCE, named_tensors, out_of_memory, precision
from fxprune.proof.holding import check_holding
from fxprune.proof.locating import NodeKeep
from fxprune.proof.masking import Keep, all_names, check_tensors
from fxprune.proof.running import nothing_left_behind
from fxprune.proof.trials import RefusedError
from fxprune.proof.validation import Case, Outcome, Validation


@dataclass(frozen=True)
class Proof:
    """The outcome of a translation validation that did not fail.

    Attributes:
        method: "masked" (outputs equal those of the original with removed entries set to zero), "nan-carrying" (equal
            those of the original over its kept entries only), or "skipped".
        relative_error: the largest of all comparisons, relative to the largest absolute value of the reference.
        tolerance: the largest relative error that would have passed.
        dtype: the floating type of the comparison, such as "float64".
        batch_sizes: sizes of dim 0 that were run; empty if the inputs share no batch dim.
        resolutions: height x width of the image-like inputs that were run.
        tensors_checked: parameters and buffers compared bit for bit.
        vacuous: the removed entries had no measurable effect, so equal outputs show little.
        randomised: the networks were also compared with random parameters, so that every layer has an effect.
        notes: further remarks for the reader, one sentence each.
        seconds: wall-clock time of the proof.
        diverges: at which other resolution or length the traced network differs from the original instead of
            refusing the input; empty if at none.
        nodes: how many nodes were judged one by one; 0 where whole networks were compared.
        device: the device it ran on.
    """

    method: str
    relative_error: float
    tolerance: float
    dtype: str
    batch_sizes: tuple[int, ...]
    resolutions: tuple[str, ...]
    tensors_checked: int
    vacuous: bool
    randomised: bool
    notes: tuple[str, ...]
    seconds: float
    diverges: str = ""
    nodes: int = 0
    device: str = "cpu"

    def joined(self, other: Proof) -> Proof:
        """Both proofs as one; ``other`` is of the same networks on inputs of other sizes."""
        where = f"on images of {', '.join(other.resolutions)}: "
        return replace(
            self,
            relative_error=max(self.relative_error, other.relative_error),
            batch_sizes=tuple(sorted({*self.batch_sizes, *other.batch_sizes})),
            resolutions=tuple(dict.fromkeys((*self.resolutions, *other.resolutions))),
            notes=(*self.notes, *(f"{where}{note}" for note in other.notes if note not in self.notes)),
            seconds=self.seconds + other.seconds,
        )

    def as_dict(self) -> dict[str, Any]:
        """This proof as plain JSON values."""
        values = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def prove(
    original: nn.Module,
    captured: nn.Module,
    pruned: nn.Module,
    keep: Keep,
    sample: tuple[tuple[Any, ...], dict[str, Any]],
    *,
    crosses_norm: bool,
    seed: int = 0,
    node_keep: NodeKeep | None = None,
    alone: bool = False,
    untrained: str | None = "",
    trained: nn.Module | None = None,
) -> Proof:
    """Prove that ``pruned`` is ``original`` without the entries that ``keep`` leaves out, and nothing else.

    Each kept tensor must equal the original's kept entries bit for bit; the traced network must equal the original;
    the outputs must equal those of the original with removed entries set to zero or, where zero is no valid stand-in,
    those of the original over its kept entries alone. Everything runs on private copies in float64 (float32 if memory
    is short), at two batch sizes and two resolutions (or sequence lengths) where the original accepts them.

    Args:
        original: the caller's model; only read.
        captured: the full-width graph traced from it, with the same parameter names.
        pruned: the smaller network, to be judged.
        keep: for every parameter and buffer of ``captured`` one kept-index tensor, or None for all, per dim; a tied
            tensor may be listed under one of its names.
        sample: positional and keyword arguments of one call.
        crosses_norm: whether a pruned axis meets a norm, a softmax or a mean, so that zero is no valid stand-in.
        seed: of the random inputs and parameters.
        node_keep: for nodes of ``captured``'s graph by name, one kept-index tensor, or None for all, per dim. It is
            used only if the outputs differ without it, and only for slices that are constant or copies of
            others: padding, expanded dims and constants, which no NaN of a parameter reaches.
        alone: run the sample's own sizes only, and random parameters only if removal has no visible effect without
            them: for a further graph of two networks that are already proven.
        untrained: why the two cannot be compared in training mode; "" if they can, None if they need not be.
        trained: the full-width graph of training mode. Its gradients are compared with the original's if those of
            ``pruned`` cannot be.

    Raises:
        ProofError: a check failed; the message names it, the place and the difference.
    """
    started = time.perf_counter()
    held, narrow = named_tensors(original), named_tensors(pruned)
    traced = {name: tensor for name, tensor in named_tensors(captured).items() if tensor is not held.get(name)}
    if changed := traced.keys() & held.keys():
        raise ProofError(f"kept tensors: the traced network's {min(changed)!r} is not the original's")
    whole = all_names({**traced, **held}, keep)
    with nothing_left_behind(original):
        checked = check_tensors({**traced, **held}, narrow, whole)
        check_holding(original, pruned, held, narrow, traced)
        check_attributes(original, pruned)
        check_code(pruned)
        case = Case(original, captured, pruned, whole, Sample(*sample), crosses_norm, node_keep or {}, seed, alone)
        case = replace(case, untrained=untrained, trained=trained)
        dtype = precision(original, case.sample)
        try:
            outcome = Validation(case, dtype).run()
        except Exception as error:
            # Some forwards create float32 tensors and so fail in every other dtype.
            if dtype == torch.float32 or not (out_of_memory(error) or isinstance(error, RefusedError)):
                raise
            dtype = torch.float32
            outcome = Validation(case, dtype).run()
    device = next((str(tensor.device) for tensor in held.values()), "cpu")
    return replace(_as_proof(outcome, dtype, checked, time.perf_counter() - started), device=device)


def _as_proof(outcome: Outcome, dtype: torch.dtype, checked: int, seconds: float) -> Proof:
    sizes = {probe.batch_size for probe in outcome.probes}
    shapes = dict.fromkeys(name for probe in outcome.probes for name in probe.resolutions)
    return Proof(
        method=outcome.method,
        relative_error=outcome.error,
        tolerance=TOLERANCE[dtype],
        dtype=str(dtype).removeprefix("torch."),
        batch_sizes=tuple(sorted(size for size in sizes if size is not None)),
        resolutions=tuple(shapes),
        tensors_checked=checked,
        vacuous=outcome.vacuous,
        randomised=outcome.randomised,
        notes=tuple(dict.fromkeys(outcome.notes)),
        seconds=seconds,
        diverges=outcome.diverges,
    )
