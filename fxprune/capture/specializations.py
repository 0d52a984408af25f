"""Specializations: graphs of the other branches that a forward takes for inputs of other sizes or other values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from fxprune.capture.capturing import Captured, capture
from fxprune.capture.checking import refuses
from fxprune.capture.decisions import are_complete, asks_sizes, asks_values
from fxprune.capture.samples import Sample, is_image, resized
from fxprune.errors import CaptureError, SampleError

# Images that are so many pixels higher and wider are tried, with and without a remainder in windows and patches.
_DIFFERENCES = ((-32, -32), (32, 32), (7, 7), (-7, -7), (64, 64), (16, 16), (1, 1), (7, 32), (32, 7))
# Each costs about half of another proof.
_MOST = 4
# A trace with values, again for each set of selections that may be empty, costs several times as much.
_MOST_LIVE = 1
# A model that refuses so many sizes is taken to want its own.
_REFUSALS = 3


# Samples to try, with the number that the user's own have.
Tried = Iterator[tuple[int | None, Sample]]


def find_specializations(model: nn.Module, captured: Captured) -> Iterator[Captured]:
    """Capture the forward on the other samples, and at other sizes, where the graphs so far refuse them.

    The other sizes are a batch of one against more, sequences of one step and of half the steps, and other resolutions.
    Where values decide, those are captured that the other samples take, and the sample with other values. A model
    without checks, or with opaque parts, has none; sizes that nobody gave may be refused by the model itself.
    Raises SampleError: the model refuses one of the other samples, or cannot be traced whole.
    """
    given = captured.sample.others
    if captured.answers is not None and (given or asks_values(captured.graph)):
        kept = replace(captured.sample, others=())
        samples = [*enumerate(given), *((None, other) for other in _other_values(kept))]
        yield from _found(model, iter(samples), [captured.without_values(model)], len(given) + _MOST, live=True)
        return
    if captured.opaque and given:
        path = next(iter(captured.opaque)) or "the model's own forward"
        raise SampleError(f"other_samples are for models that can be traced whole, and {path} cannot: leave them out")
    other_arguments = any(other.structure != captured.sample.structure for other in given)
    if captured.opaque or not (asks_sizes(captured.graph) or other_arguments):
        return
    live = captured.answers is not None  # and no answer of theirs decides
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
        found = _found(model, kind, known, len(given) + (_MOST_LIVE if live else _MOST), also, live=live)
        yield from (each for each in found if not live or not asks_values(each.graph))


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
    specialization = capture(model, sample, specialization=number, live=live)
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


def is_complete(model: nn.Module, live: Captured) -> bool:
    """Whether the graphs leave out no answer to what the forward asks of values, in batches of any size.

    Graphs for samples of other sizes may meet other questions, and do not count.
    """
    shapes = [tensor.shape for tensor in live.sample.tensors]
    graphs = [each for each in (live, *live.specializations) if [t.shape for t in each.sample.tensors] == shapes]
    return are_complete([each.graph for each in graphs]) and takes(model, graphs, similar_samples(live.sample))


def share_taken(model: nn.Module, live: Captured) -> float:
    """The share of further values that the graphs accept; 1 for a user who chose them by other samples."""
    own, runs = replace(live.sample, others=()), [each.without_values(model) for each in (live, *live.specializations)]
    turned = own.map(lambda t: t.flip(0) if t.dim() else t)
    further = [*(turned.map(partial(_scaled, by=by)) for by in (0.7, 2.5, -1.7, -0.4)), *_other_numbers(own)]
    further += [own.map(partial(_shuffled, seed=seed)) for seed in range(4)]
    further += [] if own.batch_size is None else [own.with_batch(1), own.with_batch(1).with_batch(own.batch_size)]
    tried = [sample for sample in further if refuses(model, sample) is None]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # as where the branches were found
        taken = sum(any(run(sample) is None for run in runs) for sample in tried)
    return 1.0 if live.sample.others else taken / max(len(tried), 1)


def _other_values(sample: Sample) -> list[Sample]:
    own = replace(sample, others=())
    larger = own.map(lambda t: _scaled(t.flip(-1), 4) if t.dim() and t.is_floating_point() else t)
    return [larger, *(own.map(partial(_scaled, by=by)) for by in (-0.25, -4)), *_other_numbers(own)]


def _other_numbers(sample: Sample) -> list[Sample]:
    return [sample.map(partial(_further, by=by)) for by in (1, -1, 2) if any(map(_is_number, sample.tensors))]


def _is_number(tensor: torch.Tensor) -> bool:
    """Whether a tensor is one integer, such as the number of a task: the forward may choose a layer by it."""
    return tensor.numel() == 1 and not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _further(tensor: torch.Tensor, by: int) -> torch.Tensor:
    return (tensor + by).clamp(min=0) if _is_number(tensor) else tensor


def _scaled(tensor: torch.Tensor, by: float) -> torch.Tensor:
    return tensor * by if tensor.is_floating_point() else tensor


def _shuffled(tensor: torch.Tensor, seed: int) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    order = torch.randperm(tensor.numel(), generator=torch.Generator().manual_seed(seed))
    return tensor.flatten()[order.to(tensor.device)].view(tensor.shape)


def similar_samples(sample: Sample) -> list[Sample]:
    own, batch = replace(sample, others=()), sample.batch_size
    return [*_other_values(sample), *([] if batch is None else [own.with_batch(batch + 1)])]


def takes(model: nn.Module, graphs: Sequence[Captured], samples: Sequence[Sample]) -> bool:
    """Whether each sample that the model accepts is accepted by one of the graphs."""
    runs = [graph.without_values(model) for graph in graphs]
    with torch.random.fork_rng(devices=[]):
        for seed, sample in enumerate(samples):
            torch.manual_seed(seed)  # chance must not decide either
            if all(run(sample) is not None for run in runs) and refuses(model, sample) is None:
                return False
    return True
