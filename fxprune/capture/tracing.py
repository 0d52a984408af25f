"""From model and sample to the captured graphs: eval mode, training mode, and the traceable parts of opaque modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from fxprune.capture import guards
from fxprune.capture.capturing import NO_TRAINING, Captured, Task, capture
from fxprune.capture.checking import counters, is_meta, modes_that_forget, refuses, traced_hooks
from fxprune.capture.decisions import asked_at, asks_sizes, asks_values
from fxprune.capture.modes import Modes, capture_training, modes_of
from fxprune.capture.partial import capture_parts
from fxprune.capture.reachable import reachable
from fxprune.capture.samples import Sample, is_image, resized
from fxprune.capture.state import Place, shared_objects_restored
from fxprune.errors import CaptureError, ModelError, SampleError
from fxprune.rules import has_rule, is_leaf


@dataclass(frozen=True)
class OpaqueOp:
    """An op without a rule, or whose rule does not cover this use: everything it touches keeps its size.

    ``macs`` and ``parameters`` are those of a module that is kept as one call, without those of its traced parts.
    """

    node: str
    op: str
    source: str
    reason: str
    macs: float = 0.0
    parameters: int = 0


# The names, among what is opaque, of decisions of the forward, and of a training mode that could not be traced.
DECIDED_BY_VALUES = "decisions on values"
UNTRACED_TRAINING = "the forward in training mode"


def trace(model: nn.Module, sample: Sample) -> tuple[Captured, tuple[OpaqueOp, ...]]:
    """The captured graphs, and the parts of the forward not in them. Raises FxpruneError: there is nothing to trace."""
    with shared_objects_restored(model):
        return _traced(model, sample)


def _traced(model: nn.Module, sample: Sample) -> tuple[Captured, tuple[OpaqueOp, ...]]:
    modes = modes_of(model, is_leaf)
    with shared_objects_restored(model):
        captured = _both_modes(model, sample, modes, {})
    remembers = (*captured.remembers, *(f"{key!r} of the {words}" for words, key in captured.written))
    written = counters(model, captured.sample, sorted(captured.flags) if remembers else ())
    if written:
        with shared_objects_restored(model):
            captured = _both_modes(model, sample, modes, written)
        _check_layers(model, captured, written)
    if remembers:
        _check_memory(model, captured, captured, remembers)
    captured.specializations = captured.specializations or tuple(find_specializations(model, captured))
    for specialization in captured.specializations if not captured.untraced else ():
        _add_training(model, specialization, modes, written)
        if kept := [
            name for mode in specialization.modes() for name in (*mode.remembers, *(str(p) for p, _ in mode.written))
        ]:
            _check_memory(model, captured, specialization, kept)
    for specialization in captured.specializations if captured.untraced else ():
        specialization.refuse_training(captured.untraced.removeprefix(NO_TRAINING))
    untraced = [OpaqueOp("", UNTRACED_TRAINING, "", captured.untraced)] if captured.untraced else []
    if any(asks_values(mode.graph) for mode in captured.modes()):
        count = len(captured.specializations)
        ways = f"{count + 1} ways were seen and are" if count else "the way of the sample is"
        untraced.append(
            OpaqueOp(
                "",
                DECIDED_BY_VALUES,
                asked_at(captured.graph),
                f"{ways} taken, and calls that would go another are refused",
            )
        )
    if hooked := traced_hooks(model):
        words = "what they do to values is in the graphs, and what else they do is not"
        untraced.append(OpaqueOp("", f"forward hooks of {', '.join(hooked):.100}", "", words))
    return captured, tuple(untraced)


def _check_layers(model: nn.Module, captured: Captured, written: Mapping[Place, Any]) -> None:
    """Refuse a mode in which a layer is called whose settings the forward changes: ModelError, where it is eval."""
    changes = {False: counters(model, captured.sample, [False]), True: written}
    served = [(mode, mode.training) for mode in captured.everything()]
    if not captured.untraced:  # where training has no graph of its own, that of eval mode serves it
        served += [(mode, True) for mode in captured.everything() if not mode.training and not mode.training_graph]
    for mode, training in served:
        changed = dict(changes[training].keys())
        layers = (n for n in mode.graph.nodes if n.op == "call_module" and n.target not in captured.opaque)
        called = (f"module {layer.target}" for layer in layers)
        if place := next((words for words in called if words in changed), None):
            reason = (
                f"the forward changes {changed[place]!r} of the {place} for its next call: a graph calls the layer as "
                "it was; write the operation as a function of a number in a buffer, or pass it as an argument"
            )
            if not training:
                raise ModelError(reason)
            captured.refuse_training(reason)


def attempt(model: nn.Module, like: Captured) -> tuple[fx.Graph, CaptureError | None]:
    """The trace of a forward as far as it gets, in the setting of ``like``, and the error that stopped it."""
    answers = None if like.answers is None else list(like.answers)
    task = Task(model, like.sample, has_rule, is_leaf, like.training, "", {}, answers=answers)
    told = guards.answering(set(like.told), reachable(model).namespaces.values()) if like.told else nullcontext()
    with told:
        try:
            return task.recorded()[0].graph, None
        except CaptureError as error:
            return error.graph or fx.Graph(), error


def _check_memory(model: nn.Module, captured: Captured, part: Captured, remembers: Sequence[str]) -> None:
    """Refuse a mode in which something kept between calls changes the answer: ModelError, where it is eval."""
    for training in modes_that_forget(model, part):
        reason = (
            f"the forward keeps {', '.join(remembers):.200} for its next call, which then gives another answer: a "
            "graph forgets; pass such state as an argument, or keep it in a buffer"
        )
        if not training:
            raise ModelError(reason)
        captured.refuse_training(reason)


def _both_modes(model: nn.Module, sample: Sample, modes: Modes, written: Mapping[Place, Any]) -> Captured:
    """Both graphs of a model; a part that cannot be traced in training mode is opaque in both."""
    captured = _eval_graph(model, sample, modes, written)
    captured.effects = modes.effects
    try:
        _add_training(model, captured, modes, written)
    except CaptureError as error:
        failure = error
    else:
        return captured
    try:
        if not failure.path or captured.opaque:
            raise failure
        parts = _parts(model, captured.sample, failure, modes, written)
        parts.effects = modes.effects
        _add_training(model, parts, modes, written)
    except CaptureError as error:
        captured.refuse_training(str(error))
        return captured
    return parts


def _eval_graph(model: nn.Module, sample: Sample, modes: Modes, written: Mapping[Place, Any]) -> Captured:
    """Trace with a batch of at least 2, as a size of one would hide which dims are the batch; a fixed batch stays."""
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
    live = _live_graph(model, sample, written)
    if live is not None and not asks_values(live.graph) and _takes(model, live, _similar_samples(live.sample)):
        return live
    try:
        return _parts(model, sample, failure, modes, written)
    except CaptureError:
        if live is None or not _covers_most_branches(model, live):
            raise
        return live


def _covers_most_branches(model: nn.Module, live: Captured) -> bool:
    """Find the branches that values lead to; whether more than half of further values take those found."""
    live.specializations = tuple(find_specializations(model, live))
    own, ways = replace(live.sample, others=()), [way.without_values(model) for way in (live, *live.specializations)]
    turned = own.map(lambda t: t.flip(0) if t.dim() else t)
    tried = [s for by in (0.7, 2.5, -1.7, -0.4) if refuses(model, s := turned.map(partial(_scaled, by=by))) is None]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # as where the branches were found
        taken = sum(any(run(sample) is None for run in ways) for sample in tried)
    return bool(live.sample.others) or 2 * taken > len(tried)


def _live_graph(model: nn.Module, sample: Sample, written: Mapping[Place, Any]) -> Captured | None:
    """The graph of the branches that the sample takes where data decide; None if there is none."""
    if is_meta(model) or sample.image_lists or any(tensor.is_meta for tensor in sample.tensors):
        return None
    for candidate in [sample.with_batch(2), sample] if sample.batch_size == 1 else [sample]:
        try:
            captured = capture(model, candidate, keeps=has_rule, is_leaf=is_leaf, written=written, live=True)
        except CaptureError:
            continue
        if candidate is sample or captured.takes(model, sample):
            return captured
    return None


def _other_values(sample: Sample) -> list[Sample]:
    own = replace(sample, others=())
    larger = own.map(lambda t: _scaled(t.flip(-1), 4) if t.dim() and t.is_floating_point() else t)
    return [larger, *(own.map(partial(_scaled, by=by)) for by in (-0.25, -4))]


def _scaled(tensor: torch.Tensor, by: float) -> torch.Tensor:
    return tensor * by if tensor.is_floating_point() else tensor


def _similar_samples(sample: Sample) -> list[Sample]:
    own, batch = replace(sample, others=()), sample.batch_size
    return [*_other_values(sample), *([] if batch is None else [own.with_batch(batch + 1)])]


def _takes(model: nn.Module, captured: Captured, samples: Sequence[Sample]) -> bool:
    """Whether a graph accepts all samples that the model accepts."""
    run = captured.without_values(model)
    with torch.random.fork_rng(devices=[]):
        for seed, sample in enumerate(samples):
            torch.manual_seed(seed)  # chance must not decide either
            if run(sample) is not None and refuses(model, sample) is None:
                return False
    return True


def _parts(
    model: nn.Module, sample: Sample, failure: CaptureError, modes: Modes, written: Mapping[Place, Any]
) -> Captured:
    forms: dict[str, Any] = {"keeps": has_rule, "is_leaf": is_leaf, "modes": modes, "written": written}
    if sample.batch_size == 1:
        try:
            captured = capture_parts(model, sample.with_batch(2), failure, **forms)
            if captured.takes(model, sample):
                return captured
        except CaptureError:
            pass  # the model may want one row alone
    return capture_parts(model, sample, failure, **forms)


def _add_training(model: nn.Module, captured: Captured, modes: Modes, written: Mapping[Place, Any]) -> None:
    """Capture the graph of training mode if it differs."""
    captured.training_graph = capture_training(
        model, captured, keeps=has_rule, is_leaf=is_leaf, modes=modes, written=written
    )


# Images that are so many pixels higher and wider are tried, with and without a remainder in windows and patches.
_DIFFERENCES = ((-32, -32), (32, 32), (7, 7), (-7, -7), (64, 64), (16, 16), (1, 1), (7, 32), (32, 7))
# Each costs about half of another proof.
_MOST = 4
# A model that refuses so many sizes is taken to want its own.
_REFUSALS = 3


# Samples to try, with the number that the user's own have.
Tried = Iterator[tuple[int | None, Sample]]


def find_specializations(model: nn.Module, captured: Captured) -> Iterator[Captured]:
    """Capture the forward on the other samples, and at other sizes, where the graphs so far refuse them.

    The other sizes are a batch of one against more, sequences of one step and of half the steps, and other resolutions.
    Where values decide, they are the ways that the other samples take, and the sample with other values. A model
    without checks, or with opaque parts, has none; sizes that nobody gave may be refused by the model itself.
    Raises SampleError: the model refuses one of the other samples, or cannot be traced whole.
    """
    given = captured.sample.others
    if captured.answers is not None and asks_values(captured.graph):
        kept = replace(captured.sample, others=())
        ways = [*enumerate(given), *((None, other) for other in _other_values(kept))]
        yield from _found(model, iter(ways), [captured.without_values(model)], len(given) + _MOST, live=True)
        return
    if (captured.opaque or captured.answers is not None) and given:
        path = next(iter(captured.opaque), "") or "the model's own forward"
        raise SampleError(f"other_samples are for models that can be traced whole, and {path} cannot: leave them out")
    other_arguments = any(other.structure != captured.sample.structure for other in given)
    if captured.opaque or captured.answers is not None or not (asks_sizes(captured.graph) or other_arguments):
        return
    known = [captured.without_values(model)]
    kinds: list[tuple[Tried, Sample | None]] = [(iter(enumerate(given)), None)]
    # A graph that asks for values, such as whether they are finite, does not tell without values what it refuses.
    if known[0](captured.sample) is None:
        own = replace(captured.sample, others=())
        one, resized = (((None, sample) for sample in tried(own)) for tried in (_of_one, _resized))
        kinds.append((one, None))
        if own.batch_size is not None:
            # What was kept for the last batch's size is computed again for all but that.
            rows = max(own.batch_size, 2)
            kinds.append((iter([(None, own.with_batch(rows + 1))]), own.with_batch(rows + 2)))
        kinds.append((resized, None))
    for kind, also in kinds:
        yield from _found(model, kind, known, len(given) + _MOST, also)


def _found(
    model: nn.Module,
    samples: Tried,
    known: list[Callable[[Sample], Exception | None]],
    most: int,
    also: Sample | None = None,
    *,
    live: bool = False,
) -> Iterator[Captured]:
    """Graphs for the samples that all ``known`` graphs refuse; they are added to the known ones.

    ``also``: further samples that a graph must accept to be kept.
    """
    refusals = 0
    for number, sample in samples:
        if refusals == _REFUSALS or (number is None and len(known) > most):
            return
        if any(run(sample) is None for run in known):
            continue
        try:
            specialization = _captured(model, sample, number, len(known), live)
            if also is not None and not specialization.takes(model, also):
                continue
        except CaptureError as error:
            if number is not None:
                raise SampleError(f"other_samples[{number}]: {error}") from error
            refusals += 1
        else:
            yield specialization
            known.append(specialization.without_values(model))


def _captured(model: nn.Module, sample: Sample, other: int | None, number: int, live: bool) -> Captured:
    specialization = capture(model, sample, keeps=has_rule, is_leaf=is_leaf, specialization=number, live=live)
    # What had to be told that it is traced may leave out a check of its own, which holds when it is not.
    # So may a table of positions that is too short: on the meta device no row is missing.
    refusal = refuses(model, sample) if other is None and (specialization.told or _lengths(sample)) else None
    if refusal is not None:
        raise CaptureError(refusal)
    rows = sample.batch_size
    if (
        other is None
        and rows is not None
        and rows > 2
        and not (live or specialization.takes(model, sample.with_batch(rows + 1)))
    ):
        raise CaptureError(f"its graph is for a batch of {rows} alone")
    specialization.other = other
    return specialization


def _of_one(sample: Sample) -> Iterator[Sample]:
    """The sample with a batch of one (or two, where it is one), and with sequences of one step and of half of them."""
    batch, steps = sample.batch_size, _lengths(sample)
    batches = [batch, 2 if batch == 1 else 1] if batch is not None else [None]
    lengths = [None, 1, (max(steps) + 1) // 2] if len(steps) == 1 else [None]
    for length in lengths:
        for rows in batches:
            if (rows, length) != (batch, None):
                yield sample.map(partial(_cut, rows=rows, length=length, steps=steps))


def _lengths(sample: Sample) -> set[int]:
    return {t.shape[1] for t in sample.tensors if t.ndim == 3 or (t.ndim == 2 and not t.is_floating_point())}


def _cut(tensor: torch.Tensor, rows: int | None, length: int | None, steps: set[int]) -> torch.Tensor:
    shape = list(tensor.shape)
    if rows is not None and shape:
        shape[0] = rows
    if length is not None and len(shape) in (2, 3) and shape[1] in steps:
        shape[1] = length
    return resized(tensor, shape)


def _resized(sample: Sample) -> Iterator[Sample]:
    """The sample with images of other sizes: half of it, the next multiple of 32, half as wide, and a quarter last."""
    sides = [size for tensor in sample.tensors if is_image(tensor) for size in tensor.shape[-2:]]
    if not sides:
        return
    half, most, whole = min(sides) // 2, 3 * min(sides) // 4, 32 - min(sides) % 32
    for higher, wider in ((-half, -half), (whole, whole), (0, -half), *_DIFFERENCES, (-most, -most)):
        if min(sides) + min(higher, wider) > 0:
            yield sample.map(partial(_changed, higher=higher, wider=wider))


def _changed(tensor: torch.Tensor, higher: int, wider: int) -> torch.Tensor:
    if not is_image(tensor):
        return tensor
    *front, height, width = tensor.shape
    return resized(tensor, (*front, height + higher, width + wider))
