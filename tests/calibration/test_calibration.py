"""What counts as a batch, and which calibration data are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fxprune.calibration import Calibration
from fxprune.capture.samples import Sample
from fxprune.errors import CalibrationError

X, Y = torch.arange(24.0).reshape(4, 6), torch.tensor([0, 1, 2, 0])


def read(data: Any, sample: Any) -> list[Any]:
    return list(Calibration(data, Sample.from_input(sample)))


@pytest.mark.parametrize("batch", [(X, Y), [X, Y], ((X,), Y), ([X], Y)])
def test_input_and_target(batch: Any) -> None:
    (found,) = read([batch], X[:1])
    assert torch.equal(found.sample.args[0], X)
    assert torch.equal(found.target, Y)
    assert found.size == 4


@pytest.mark.parametrize("batch", [X, (X,), [X]])
def test_input_alone(batch: Any) -> None:
    (found,) = read([batch], X[:1])
    assert torch.equal(found.sample.args[0], X)
    assert found.target is None


@pytest.mark.parametrize(("batch", "target"), [((X, X), None), ([X, X], None), (((X, X), Y), Y), ([[X, X], Y], Y)])
def test_two_inputs(batch: Any, target: Any) -> None:
    (found,) = read([batch], (X[:1], X[:1]))
    assert len(found.sample.args) == 2
    assert (found.target is None) == (target is None)


def test_keyword_arguments_and_lists() -> None:
    (found,) = read([({"a": X, "b": Y}, Y)], {"a": X[:1], "b": Y[:1]})
    assert list(found.sample.kwargs) == ["a", "b"]
    (found,) = read([[X[0], X[1], X[2]]], [X[0], X[1]])
    assert found.size == 3


def test_a_data_loader() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=3)
    data = Calibration(loader, Sample.from_input(X[:1]))
    assert data.length == 2
    for _ in range(2):
        assert [batch.size for batch in data] == [3, 1]
        assert data.seen == 4


def test_an_iterator_is_read_once() -> None:
    data = Calibration(iter([X]), Sample.from_input(X))
    assert data.length is None
    assert len(list(data)) == 1
    with pytest.raises(CalibrationError, match="a second pass is needed"):
        list(data)


@pytest.mark.parametrize("data", [X, {"x": X}, "x", 3, None])
def test_no_iterable_of_batches(data: Any) -> None:
    with pytest.raises(CalibrationError, match="iterable of batches"):
        read(data, X)


def test_no_batches() -> None:
    with pytest.raises(CalibrationError, match="holds no samples"):
        read([], X)


@pytest.mark.parametrize("batch", [X[0], (X, Y, Y), Y, "text", (X.long(), Y)])
def test_a_batch_that_does_not_fit(batch: Any) -> None:
    with pytest.raises(CalibrationError, match=r"batch 1 of calibration does not fit.*tensor of shape \(4, 6\)"):
        read([X, batch], X)


def test_the_data_are_copied() -> None:
    (found,) = read([X], X)
    assert found.sample.args[0].data_ptr() != X.data_ptr()


def test_singles() -> None:
    (found,) = read([(X, Y)], X)
    singles = list(found.parts())
    assert [tuple(s.sample.args[0].shape) for s in singles] == [(1, 6)] * 4
    assert [int(s.target) for s in singles] == Y.tolist()
