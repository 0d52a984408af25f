"""Batches: what a data loader yields, read as arguments of a network and a target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxprune.samples import Sample

__all__ = ["Batch", "batch_size", "describe_arguments", "describe_value", "read_batch", "read_pair"]


@dataclass(frozen=True)
class Batch:
    """One batch.

    Attributes:
        sample: what the model is called with.
        target: what came with it; None if nothing did.
        size: how many samples it holds (1 where the tensors share no first dim).
    """

    sample: Sample
    target: Any
    size: int

    def singles(self) -> Iterator[Batch]:
        """The batch sample by sample; what has no first dim in common stays whole."""
        if self.sample.batch_size is None or self.size == 1 or _lists(self.sample):
            yield self
            return
        for i in range(self.size):

            def row(tensor: torch.Tensor, i: int = i) -> torch.Tensor:
                return tensor[i : i + 1] if tensor.ndim and tensor.shape[0] == self.size else tensor

            yield Batch(self.sample.map(row), pytree.tree_map_only(torch.Tensor, row, self.target), 1)


def read_batch(given: Any, sample: Sample) -> tuple[Sample, Any] | None:
    """Arguments and target of what a loader yields: what the model takes, ``(input, target)`` or ``((a, b), target)``.

    What a model takes is told by its sample: a batch has as many arguments, of the same kinds and numbers of dims. A
    list stands for a tuple where a tuple is meant, as data loaders yield them. None where nothing fits.
    """
    found = next((s for s in _candidates(given) if _fits(s, sample)), None)
    if found is None and isinstance(given, (tuple, list)) and len(given) == 2:
        found = next((s for s in _candidates(given[0]) if _fits(s, sample)), None)
        return None if found is None else (found, given[1])
    return None if found is None else (found, None)


def read_pair(given: Any) -> tuple[Sample, Any]:
    """The same where no sample tells what the model takes: a pair is an input and a target, all else is the input."""
    if isinstance(given, (tuple, list)) and not hasattr(given, "_fields") and len(given) == 2:
        return Sample(*_split(given[0])), given[1]
    return Sample(*_split(tuple(given) if isinstance(given, list) else given)), None


def _candidates(given: Any) -> Iterator[Sample]:
    """The ways to read a value as arguments. A data loader makes lists of tuples."""
    yield Sample(*_split(given))
    if isinstance(given, list):
        yield Sample(tuple(given), {})


def _split(given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(given, Mapping) and all(isinstance(key, str) for key in given):
        return (), dict(given)
    if isinstance(given, tuple) and not hasattr(given, "_fields"):
        return tuple(given), {}
    return (given,), {}


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
    """How many samples the arguments hold; 1 where they share no first dim."""
    lists = _lists(sample)
    return len(lists[0]) if lists else sample.batch_size or 1


def _lists(sample: Sample) -> list[list[Any]]:
    """Arguments that are lists: one tensor for each sample, as detectors take them."""
    return [v for v in (*sample.args, *sample.kwargs.values()) if isinstance(v, list)]


def describe_value(value: Any) -> str:
    """Type, shape and dtype in words, for messages."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)} and dtype {value.dtype}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {', '.join(describe_value(v) for v in value[:4])}"
    return f"a {type(value).__name__}"


def describe_arguments(sample: Sample) -> str:
    """All arguments in words, for messages."""
    named = [describe_value(v) for v in sample.args] + [f"{k}: {describe_value(v)}" for k, v in sample.kwargs.items()]
    return "(" + "; ".join(named) + ")"
