"""Compile a small net with its proof and check what every result must fulfil."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

import fxprune
from fxprune.capture import Captured, capture
from fxprune.capture.samples import Sample
from tests.snapshots import process, snapshot, storages


def captured(model: nn.Module, sample_input: Any) -> Captured:
    """The captured graph alone."""
    return capture(model, Sample.from_input(sample_input))


def pruned(model: nn.Module, sample_input: Any, ratio: float = 0.3, **options: Any) -> fx.GraphModule:
    """Compile, and check: proven, smaller, runs the sample with the original's output structure, original untouched."""
    model.eval()
    before, around = snapshot(model), process()
    result = fxprune.compile(model, sample_input, ratio, **options)
    assert snapshot(model) == before
    assert process() == around
    report = fxprune.report(result)
    assert report.proof is not None
    assert not report.proof.vacuous
    assert report.budget_after <= (1 - ratio) * report.budget_before
    assert not storages(result) & storages(model)
    assert_same_structure(model, result, sample_input)
    assert_names_are_a_subset(model, result)
    return result


def assert_same_structure(model: nn.Module, result: nn.Module, sample_input: Any) -> None:
    """The outputs of both have the same containers, keys, shapes and dtypes."""
    sample = Sample.from_input(sample_input)
    with torch.no_grad():
        expected, found = plain(sample.call(model)), plain(sample.call(result))
    expected_leaves, expected_spec = pytree.tree_flatten(expected)
    found_leaves, found_spec = pytree.tree_flatten(found)
    assert found_spec == expected_spec
    for left, right in zip(expected_leaves, found_leaves, strict=True):
        assert type(left) is type(right)
        if isinstance(left, torch.Tensor):
            assert (left.shape, left.dtype, left.device) == (right.shape, right.dtype, right.device)
        else:
            assert left == right


def plain(output: Any) -> Any:
    """A dataclass as its type and its fields; anything else as it is."""
    if not dataclasses.is_dataclass(output):
        return output
    return {"class": type(output), **{f.name: getattr(output, f.name) for f in dataclasses.fields(output)}}


def assert_names_are_a_subset(model: nn.Module, result: nn.Module) -> None:
    """The result's state dict has names of the original only, of the same dtypes and numbers of dims."""
    full, narrow = model.state_dict(), result.state_dict()
    assert narrow.keys() <= full.keys()
    for name, tensor in narrow.items():
        assert tensor.dtype == full[name].dtype
        assert tensor.ndim == full[name].ndim


def assert_equal_copy(model: nn.Module, sample_input: Any, *others: Any) -> fx.GraphModule:
    """At ratio 0 the result gives the same bits as the original, on the sample and on other inputs."""
    model.eval()
    copy = fxprune.compile(model, sample_input, 0.0)
    for given in (sample_input, *others):
        sample = Sample.from_input(given)
        with torch.no_grad():
            expected, found = pytree.tree_leaves(sample.call(model)), pytree.tree_leaves(sample.call(copy))
        assert len(expected) == len(found)
        for left, right in zip(expected, found, strict=True):
            assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right
    return copy


def vector(batch: int = 2, width: int = 8) -> torch.Tensor:
    return torch.randn(batch, width)


def image(batch: int = 2, size: int = 8) -> torch.Tensor:
    return torch.randn(batch, 3, size, size)
