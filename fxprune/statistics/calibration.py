"""Calibration data: what a user passes as ``calibration``, read batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxprune.errors import CalibrationError
from fxprune.samples import Sample
from fxprune.statistics.batches import Batch, batch_size, describe_arguments, describe_value, read_batch

__all__ = ["Batch", "Calibration"]


class Calibration:
    """A re-iterable of batches. A batch is what the model takes, ``(input, target)``, or ``((a, b), target)``.

    What a model takes is told by its sample: a batch has as many arguments, of the same kinds and numbers of dims. A
    list stands for a tuple where a tuple is meant, as data loaders yield them. Tensors move to the sample's device.

    Args:
        data: the iterable. An iterator (a generator, say) can be read once only.
        sample: the arguments that the model was compiled with.

    Raises:
        CalibrationError: it is no iterable of batches.
    """

    def __init__(self, data: Iterable[Any], sample: Sample) -> None:
        if isinstance(data, (torch.Tensor, Mapping, str, bytes)) or not isinstance(data, Iterable):
            kind = type(data).__name__
            raise CalibrationError(f"calibration must be an iterable of batches, not a {kind}; [batch] holds one batch")
        self._data = data
        self._sample = sample
        self._device = sample.tensors[0].device
        self._exhausted = False
        self.seen = 0

    @property
    def length(self) -> int | None:
        """How many batches there are, where the data knows."""
        try:
            return len(self._data)  # type: ignore[arg-type]
        except TypeError:
            return None

    def __iter__(self) -> Iterator[Batch]:
        """Every batch, on the sample's device; counts samples in ``seen``.

        Raises:
            CalibrationError: there is none, one does not fit the model, or an iterator is read a second time.
        """
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
            yield batch
        if self.seen == 0:
            raise CalibrationError("calibration holds no samples: pass at least one batch")

    def _read(self, given: Any, number: int) -> Batch:
        found = read_batch(given, self._sample)
        if found is None:
            raise CalibrationError(
                f"batch {number} of calibration does not fit the model: it is {describe_value(given)}; expected what "
                f"the model takes, {describe_arguments(self._sample)}, or a pair of that and the target"
            )
        sample = found[0].map(self._placed)
        return Batch(sample, pytree.tree_map_only(torch.Tensor, self._placed, found[1]), batch_size(sample))

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        # A network may write to its input, and the data is the caller's.
        return tensor.detach().to(self._device, copy=True)
