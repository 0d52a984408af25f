"""Calibration batches: how they are read, checked and split, and the default loss."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree

from fxprune.capture.samples import Sample, as_arguments, is_image
from fxprune.errors import CalibrationError, FxpruneError, described

if TYPE_CHECKING:
    from fxprune.calibration.balance import Balance

_TARGETS = ("label", "target")
_HELD_OUT = 8  # one sample in eight is held out

Loss = Callable[[Any, Any], torch.Tensor]


def default_loss(output: Any, target: Any) -> torch.Tensor:
    """Mean cross-entropy of logits (N, classes, ...) and classes (N, ...) or shares. CalibrationError: others."""
    if isinstance(output, torch.Tensor) and isinstance(target, torch.Tensor) and output.ndim >= 2:
        indices = not target.is_floating_point() and target.shape == (output.shape[0], *output.shape[2:])
        shares = target.is_floating_point() and target.shape == output.shape
        if output.is_floating_point() and (indices or shares):
            return F.cross_entropy(output, target.long() if indices else target)
    if target is None:
        raise CalibrationError(
            "gradients need a loss: let calibration yield (input, target), or pass loss=, a function of the output and "
            "the target (None where there is none) that returns the mean over the batch"
        )
    raise CalibrationError(
        f"no loss is known for an output {_shape(output)} and a target {_shape(target)}: pass loss=, a function of "
        "both that returns the mean over the batch"
    )


def _shape(value: Any) -> str:
    return f"of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"of type {type(value).__name__}"


@dataclass(frozen=True)
class Batch:
    """One batch: the call's sample, its target or None, and how many samples it holds (1 without a first dim)."""

    sample: Sample
    target: Any
    size: int

    def parts(self, size: int = 1) -> Iterator[Batch]:
        """The batch in parts of ``size`` samples; a batch whose arguments share no first dim stays whole."""
        if self.sample.batch_size is None or self.size <= size or _lists(self.sample):
            yield self
            return
        for i in range(0, self.size, size):

            def rows(tensor: torch.Tensor, i: int = i) -> torch.Tensor:
                return tensor[i : i + size] if tensor.ndim and tensor.shape[0] == self.size else tensor

            target = pytree.tree_map_only(torch.Tensor, rows, self.target)
            yield Batch(self.sample.map(rows), target, min(size, self.size - i))

    def side_by_side(self) -> Batch:
        """The batch in channels-last memory format, in which convolutions on CPUs are fastest."""
        return replace(self, sample=self.sample.map(_side_by_side))


def _side_by_side(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if is_image(tensor) and tensor.ndim == 4 else tensor


def held_out(batch: Batch) -> torch.Tensor:
    """A mask (size,) of the samples that nothing is fitted to: one in eight, by content, for any batches or ranks."""
    return torch.tensor([check % _HELD_OUT == 0 for check in checksums(batch)])


def checksums(batch: Batch) -> list[int]:
    """A number below 2 ** 32 for each sample, by its content; the same for all if they share no first dim."""
    shared = batch.sample.batch_size == batch.size
    tensors = [t.detach().cpu().contiguous() for t in batch.sample.tensors if t.ndim and t.numel()]
    checks = [0] * batch.size
    for tensor in tensors if shared else ():
        rows = tensor.reshape(batch.size, -1).view(torch.uint8).numpy()
        checks = [zlib.crc32(row.tobytes(), check) for row, check in zip(rows, checks, strict=True)]
    if not shared:
        whole = 0
        for tensor in tensors:
            whole = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().tobytes(), whole)
        checks = [whole] * batch.size
    return checks


def read_batch(given: Any, sample: Sample) -> tuple[Sample, Any] | None:
    """Arguments and target of a loader's item: the model's input, ``(input, target)`` or ``((a, b), target)``.

    The sample defines the model's input: a batch has as many arguments, of the same kinds and numbers of dims. A list
    may be given instead of a tuple, as data loaders yield them. If a dict has one further entry, called labels or
    targets, that is the target. None if nothing fits.
    """
    given = _with_target(given, sample)
    found = next((s for s in _candidates(given) if _fits(s, sample)), None)
    if found is None and isinstance(given, (tuple, list)) and len(given) == 2:
        found = next((s for s in _candidates(given[0]) if _fits(s, sample)), None)
        return None if found is None else (found, given[1])
    return None if found is None else (found, None)


def _with_target(given: Any, sample: Sample) -> Any:
    """A pair of arguments and target for a dict that holds both."""
    if not isinstance(given, Mapping):
        return given
    more = [name for name in given if name not in sample.kwargs]
    if len(more) != 1 or len(given) != len(sample.kwargs) + 1 or not str(more[0]).startswith(_TARGETS):
        return given
    return {name: given[name] for name in sample.kwargs}, given[more[0]]


def read_pair(given: Any) -> tuple[Sample, Any]:
    """As :func:`read_batch`, without a sample: a pair is an input and a target, anything else is the input."""
    if isinstance(given, (tuple, list)) and not hasattr(given, "_fields") and len(given) == 2:
        return Sample(*as_arguments(given[0])), given[1]
    return Sample(*as_arguments(tuple(given) if isinstance(given, list) else given)), None


def _candidates(given: Any) -> Iterator[Sample]:
    """The ways to read a value as arguments. A data loader makes lists of tuples."""
    yield Sample(*as_arguments(given))
    if isinstance(given, list):
        yield Sample(tuple(given), {})


def _fits(given: Sample, sample: Sample) -> bool:
    if given.kwargs.keys() != sample.kwargs.keys() or len(given.args) != len(sample.args):
        return False
    pairs = [*zip(given.args, sample.args, strict=True), *((given.kwargs[k], v) for k, v in sample.kwargs.items())]
    return all(_alike(a, b) for a, b in pairs)


def _alike(given: Any, expected: Any) -> bool:
    if isinstance(expected, torch.Tensor) or isinstance(given, torch.Tensor):
        both = isinstance(expected, torch.Tensor) and isinstance(given, torch.Tensor)
        return both and given.ndim == expected.ndim and given.is_floating_point() == expected.is_floating_point()
    if isinstance(expected, (list, tuple)):
        # Lists of tensors may have any length (detectors take as many images as there are).
        return isinstance(given, (list, tuple)) and all(_alike(g, expected[0]) for g in given if len(expected))
    return True


def batch_size(sample: Sample) -> int:
    """The number of samples in the arguments; 1 if they share no first dim."""
    lists = _lists(sample)
    shared = 1 if sample.batch_size is None else sample.batch_size
    return len(lists[0]) if lists else shared


def _lists(sample: Sample) -> list[list[Any]]:
    """Arguments that are lists: one tensor for each sample, as detectors take them."""
    return [v for v in (*sample.args, *sample.kwargs.values()) if isinstance(v, list)]


def describe_value(value: Any) -> str:
    """Type, shape and dtype in words, for messages."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)} and dtype {value.dtype}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {', '.join(describe_value(v) for v in value[:4])}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with the keys {', '.join(map(repr, itertools.islice(value, 6)))}"
    return f"{'an' if type(value).__name__[0] in 'aeiou' else 'a'} {type(value).__name__}"


def describe_arguments(sample: Sample) -> str:
    """All arguments in words, for messages."""
    named = [describe_value(v) for v in sample.args] + [f"{k}: {describe_value(v)}" for k, v in sample.kwargs.items()]
    return "(" + "; ".join(named) + ")"


class Calibration:
    """A re-iterable of batches, each as :func:`read_batch` reads it for a sample; tensors move to the sample's device.

    Batches without samples are left out.

    An iterator (a generator, say) can be read only once. Raises CalibrationError: ``data`` is not an iterable.
    """

    def __init__(self, data: Iterable[Any], sample: Sample) -> None:
        if isinstance(data, (torch.Tensor, Mapping, str, bytes)) or not isinstance(data, Iterable):
            kind = type(data).__name__
            raise CalibrationError(f"calibration must be an iterable of batches, not a {kind}; [batch] holds one batch")
        self._data = data
        self._sample = sample
        self._device = sample.tensors[0].device
        # Masks may contain infinity; if they do, so does the sample.
        self._finite = not any(t.is_floating_point() and not t.is_meta and t.isinf().any() for t in sample.tensors)
        self._exhausted = False
        self.seen = 0
        # The number of samples to run at a time: 0 for whole batches, None if not determined yet.
        self.part: int | None = None
        # How much each position counts; None if all count alike, or if that was not counted yet.
        self.balance: Balance | None = None
        self.counted = False

    @property
    def length(self) -> int | None:
        """The number of batches, or None if the data has no length."""
        try:
            return len(self._data)  # type: ignore[arg-type]
        except TypeError:
            return None

    @property
    def again(self) -> bool:
        """Whether another pass is possible: an iterator allows one pass in total."""
        return not self._exhausted

    @property
    def repeats(self) -> bool:
        """Whether any number of passes is possible."""
        return not isinstance(self._data, Iterator)

    def __iter__(self) -> Iterator[Batch]:
        """Every batch, on the sample's device, counted in ``seen``. Raises CalibrationError: a batch does not fit."""
        if self._exhausted:
            raise CalibrationError(
                "calibration is an iterator, which is empty after one pass, and a second pass is needed: pass "
                "something that can be iterated again, such as a DataLoader or a list of batches"
            )
        self._exhausted = isinstance(self._data, Iterator)
        self.seen = 0
        for number, given in enumerate(self._data):
            batch = self._read(given, number)
            self.seen += batch.size
            if batch.size:
                yield batch
        if self.seen == 0:
            raise CalibrationError("calibration holds no samples: pass at least one batch")

    def _read(self, given: Any, number: int) -> Batch:
        found = read_batch(given, self._sample)
        if found is None:
            raise CalibrationError(
                f"batch {number} of calibration does not fit the model: it is {describe_value(given)}; expected what "
                f"the model takes, {describe_arguments(self._sample)}, or a pair of that and the target: give a list "
                "of such batches, or let the loader's collate_fn make them"
            )
        for tensor in (t for t in found[0].tensors if t.is_floating_point()):
            if tensor.isnan().any() or (self._finite and tensor.isinf().any()):
                raise CalibrationError(f"batch {number} of calibration holds NaN or infinity: leave such samples out")
        sample = found[0].map(self._placed)
        return Batch(sample, pytree.tree_map_only(torch.Tensor, self._placed, found[1]), batch_size(sample))

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        # A network may write to its input, but the data belongs to the caller.
        return tensor.detach().to(self._device, copy=True)


@contextmanager
def fitting(sample: Sample) -> Iterator[None]:
    """Turn an error of the network on a batch into a CalibrationError that describes the batch."""
    try:
        yield
    except FxpruneError:
        raise
    except Exception as error:  # the user's own code runs here and may raise anything
        raise CalibrationError(
            f"the model fails on a batch of calibration, {describe_arguments(sample)}: {described(error)}; give "
            "batches on which it can be called"
        ) from error
