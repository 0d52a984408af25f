import collections
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxprune.capture.samples import Sample
from fxprune.errors import SampleError

Pair = collections.namedtuple("Pair", ["left", "right"])
X, Y = torch.arange(6.0).reshape(2, 3), torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("given_input", "args", "kwargs"),
    [
        (X, (X,), {}),
        ([X, Y], ([X, Y],), {}),
        ((X, Y), (X, Y), {}),
        (([X], {"y": Y}, 3), ([X], {"y": Y}, 3), {}),
        ({"x": X, "y": Y}, (), {"x": X, "y": Y}),
        (collections.UserDict({"x": X, "y": Y}), (), {"x": X, "y": Y}),
        ({1: X}, ({1: X},), {}),
        (Pair(X, Y), (Pair(X, Y),), {}),
    ],
    ids=["tensor", "list", "tuple", "nested", "keywords", "a-tokeniser's", "dict-with-other-keys", "namedtuple"],
)
def test_from_input(given_input: Any, args: Any, kwargs: Any) -> None:
    sample = Sample.from_input(given_input)
    assert [type(value) for value in sample.args] == [type(value) for value in args]
    assert sample.kwargs.keys() == kwargs.keys()
    assert [id(t) for t in sample.tensors] == [id(t) for t in Sample(args, kwargs).tensors]


def test_a_sample_stays_itself() -> None:
    sample = Sample.from_input(X)
    assert Sample.from_input(sample) is sample


@pytest.mark.parametrize("nothing", [None, 3, "image", (), {}, [1, 2], object()])
def test_without_tensors(nothing: Any) -> None:
    with pytest.raises(SampleError, match="holds no tensor"):
        Sample.from_input(nothing)


def test_nan_is_refused_by_name_and_infinity_is_not() -> None:
    with pytest.raises(SampleError, match=r"kwargs\['mask'\] holds NaN"):
        Sample.from_input({"x": X, "mask": torch.tensor([float("nan")])})
    Sample.from_input({"x": X, "mask": torch.tensor([float("-inf")])})


def test_sparse_is_refused() -> None:
    with pytest.raises(SampleError, match=r"args\[1\] is of layout torch.sparse_coo"):
        Sample.from_input((X, X.to_sparse()))


@pytest.mark.parametrize(
    ("given_input", "expected"),
    [
        (X, 2),
        ((X, Y), 2),
        ((X, torch.tensor(3.0)), 2),
        ((X, torch.zeros(5)), None),
        (torch.tensor(1.0), None),
    ],
)
def test_batch_size(given_input: Any, expected: int | None) -> None:
    assert Sample.from_input(given_input).batch_size == expected


@given(rows=st.integers(1, 5), wanted=st.integers(1, 12))
def test_with_batch_repeats_rows_in_order(rows: int, wanted: int) -> None:
    x = torch.arange(rows * 2.0).reshape(rows, 2)
    scalar = torch.tensor(7.0)
    sample = Sample.from_input({"x": [x], "scale": scalar}).with_batch(wanted)
    assert torch.equal(sample.kwargs["x"][0], x[torch.arange(wanted) % rows])
    assert sample.kwargs["scale"] is scalar
    assert sample.batch_size == wanted


def test_with_batch_keeps_the_memory_format() -> None:
    x = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    assert Sample.from_input(x).with_batch(3).args[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("given_input", "batch", "message"),
    [
        ((X, torch.zeros(5)), 2, r"args\[0\] \(2, 3\), args\[1\] \(5,\)"),
        (torch.zeros(0, 3), 2, "batch of 0"),
        (X, 0, "at least 1"),
    ],
)
def test_with_batch_refuses(given_input: Any, batch: int, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        Sample.from_input(given_input).with_batch(batch)


def test_to_meta_keeps_shapes_strides_and_dtypes() -> None:
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    meta = Sample.from_input((x, 3)).to_meta()
    assert meta.args[0].is_meta
    assert (meta.args[0].shape, meta.args[0].stride(), meta.args[0].dtype) == (x.shape, x.stride(), x.dtype)
    assert meta.args[1] == 3
    Sample.from_input(meta.args)


def test_map_and_call() -> None:
    sample = Sample.from_input(({"x": X}, 2)).map(lambda tensor: tensor + 1)
    assert torch.equal(sample.call(lambda batch, factor: batch["x"] * factor), (X + 1) * 2)


def test_named_tensors() -> None:
    sample = Sample.from_input({"x": [X], "y": Y})
    assert [name for name, _ in sample.named_tensors()] == ["kwargs['x'][0]", "kwargs['y']"]
