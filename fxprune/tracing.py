"""A model and a sample to its captured graphs: eval mode, training mode, and the parts of what cannot be traced."""

from __future__ import annotations

from torch import nn

from fxprune.capture import Captured, Modes, capture, capture_parts, capture_training, modes_of
from fxprune.checking import check_forgets, refuses
from fxprune.errors import CaptureError, SampleError
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
    modes = modes_of(model, is_leaf)
    captured = _eval_graph(model, sample, modes)
    captured.effects = modes.effects
    captured.variants = tuple(find_variants(model, captured))
    untraced = [_add_training(model, variant, modes) for variant in (captured, *captured.variants)]
    return captured, untraced[0]


def _eval_graph(model: nn.Module, sample: Sample, modes: Modes) -> Captured:
    """Trace with a batch of at least 2, so that no size of one hides what the batch is; a fixed batch stays."""
    candidates = [sample.with_batch(2), sample] if sample.batch_size == 1 else [sample]
    failure: CaptureError | None = None
    for candidate in candidates:
        try:
            captured = capture(model, candidate, keeps=has_rule, is_leaf=is_leaf)
        except CaptureError as error:
            failure = error
            continue
        if candidate is sample or captured.takes(model, sample):
            check_forgets(model, sample, captured.remembers)
            return captured
    assert failure is not None
    refusal = refuses(model, sample)
    if refusal is not None:
        raise SampleError(f"the model itself refuses the sample: {refusal}") from failure
    return capture_parts(model, sample, failure, keeps=has_rule, is_leaf=is_leaf, modes=modes)


def _add_training(model: nn.Module, captured: Captured, modes: Modes) -> tuple[OpaqueOp, ...]:
    """Capture the graph of training mode where it is another one; else say what the report should know."""
    try:
        captured.training_twin = capture_training(model, captured, keeps=has_rule, is_leaf=is_leaf, modes=modes)
    except CaptureError as error:
        reason = f"training mode runs the graph of eval mode: {error}"
        return (OpaqueOp("", UNTRACED_TRAINING, "", reason),)
    return ()
