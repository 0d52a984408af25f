"""What counts as a batch, and which calibration data are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fxprune
from fxprune.calibration import Calibration, collecting
from fxprune.calibration.collecting import PrivateNetwork
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


@pytest.mark.parametrize("data", [[], [X[:0]], [[]]], ids=["no batch", "no rows", "an empty list"])
def test_no_samples(data: Any) -> None:
    with pytest.raises(CalibrationError, match="holds no samples"):
        read(data, [X] if data == [[]] else X)


def test_batches_without_samples_are_left_out() -> None:
    assert [found.size for found in read([X[:0], X, (X[:0], Y[:0])], X)] == [4]


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


class Mixes(nn.Module):
    """Takes what all samples together have away, or reads memory in its order."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4 * 36, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.way == "mean":
            x = x - x.mean(0, keepdim=True)
        return self.head(x.view(len(x), -1) if self.way == "view" else x.flatten(1))


@pytest.mark.parametrize(("way", "sizes"), [("plain", [16, 16, 8]), ("mean", [40]), ("view", [40])])
def test_parts_are_run_where_that_makes_no_difference(way: str, sizes: list[int]) -> None:
    model, x = Mixes(way).eval(), torch.randn(40, 3, 6, 6)
    graph, data = fxprune.analyze(model, x[:2]), Calibration([x], Sample.from_input(x))
    network = PrivateNetwork(graph, model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collecting, "_CACHE", 1)
        parts = list(collecting.parts_of(data, next(iter(data)), graph, network))
    assert [part.size for part in parts] == sizes
    assert torch.equal(torch.cat([part.sample.args[0] for part in parts]), x)


def test_a_dict_may_hold_the_target_too() -> None:
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    sample = Sample.from_input({"x": x})
    for name in ("labels", "target"):
        (batch,) = Calibration([{"x": x, name: y}], sample)
        assert torch.equal(batch.sample.kwargs["x"], x)
        assert torch.equal(batch.target, y)
    for more in ({"mask": y}, {"labels": y, "mask": y}):
        with pytest.raises(CalibrationError, match="does not fit"):
            list(Calibration([{"x": x, **more}], sample))
