"""A model and a sample to its captured graphs: eval mode, training mode, and the parts of what cannot be traced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from fxprune.capture import Captured, Modes, capture, capture_parts, capture_training, modes_of
from fxprune.capture.state import Place, PythonState
from fxprune.checking import counters, refuses
from fxprune.errors import CaptureError, ModelError, SampleError
from fxprune.groups import OpaqueOp
from fxprune.rewriting import UNTRACED_TRAINING
from fxprune.rules import has_rule, is_leaf
from fxprune.samples import Sample
from fxprune.variants import find_variants

__all__ = ["trace"]


def trace(model: nn.Module, sample: Sample) -> tuple[Captured, tuple[OpaqueOp, ...]]:
    """The captured graphs, and what of the forward is not in them.

    Raises:
        FxpruneError: nothing of the model can be traced, or it refuses the sample.
    """
    outside = PythonState(model)
    try:
        return _traced(model, sample)
    finally:
        outside.restore()


def _traced(model: nn.Module, sample: Sample) -> tuple[Captured, tuple[OpaqueOp, ...]]:
    modes = modes_of(model, is_leaf)
    captured, untraced = _both_modes(model, sample, modes, {})
    remembers = (*captured.remembers, *(f"{key!r} of the {words}" for words, key in captured.written))
    written, differs = counters(model, sample, sorted(captured.flags) if remembers else ())
    if written:
        captured, untraced = _both_modes(model, sample, modes, written)
    if differs and not captured.opaque:
        raise ModelError(
            f"the forward keeps {', '.join(remembers):.200} for its next call, which then gives another answer: a "
            "graph forgets; pass such state as an argument, or keep it in a buffer"
        )
    captured.variants = tuple(find_variants(model, captured))
    for variant in captured.variants if not untraced else ():
        _add_training(model, variant, modes, written)
    return captured, untraced


def _both_modes(
    model: nn.Module, sample: Sample, modes: Modes, written: Mapping[Place, Any]
) -> tuple[Captured, tuple[OpaqueOp, ...]]:
    """Both graphs of a model; a part that cannot be traced in training mode is opaque in both."""
    captured = _eval_graph(model, sample, modes, written)
    captured.effects = modes.effects
    try:
        _add_training(model, captured, modes, written)
    except CaptureError as error:
        failure = error
    else:
        return captured, ()
    try:
        if not failure.path or captured.opaque:
            raise failure
        parts = _parts(model, captured.sample, failure, modes, written)
        parts.effects = modes.effects
        _add_training(model, parts, modes, written)
    except CaptureError as error:
        reason = f"training mode runs the graph of eval mode: {error}"
        return captured, (OpaqueOp("", UNTRACED_TRAINING, "", reason),)
    return parts, ()


def _eval_graph(model: nn.Module, sample: Sample, modes: Modes, written: Mapping[Place, Any]) -> Captured:
    """Trace with a batch of at least 2, so that no size of one hides what the batch is; a fixed batch stays."""
    candidates = [sample.with_batch(2), sample] if sample.batch_size == 1 else [sample]
    failure: CaptureError | None = None
    for candidate in candidates:
        try:
            captured = capture(model, candidate, keeps=has_rule, is_leaf=is_leaf, written=written)
        except CaptureError as error:
            failure = error
            continue
        if candidate is sample or captured.takes(model, sample):
            return captured
    assert failure is not None
    refusal = refuses(model, sample)
    if refusal is not None:
        raise SampleError(f"the model itself refuses the sample: {refusal}") from failure
    return _parts(model, sample, failure, modes, written)


def _parts(
    model: nn.Module, sample: Sample, failure: CaptureError, modes: Modes, written: Mapping[Place, Any]
) -> Captured:
    return capture_parts(model, sample, failure, keeps=has_rule, is_leaf=is_leaf, modes=modes, written=written)


def _add_training(model: nn.Module, captured: Captured, modes: Modes, written: Mapping[Place, Any]) -> None:
    """Capture the graph of training mode where it is another one."""
    captured.training_twin = capture_training(
        model, captured, keeps=has_rule, is_leaf=is_leaf, modes=modes, written=written
    )
