"""Every way of calling a model: positional, keyword, nested, optional, starred arguments."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import SampleError
from tests.capture.compiled import assert_equal_copy, pruned, vector


class Two(nn.Module):
    """Two inputs, an optional third and plain Python arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(
        self,
        left: torch.Tensor,
        right: torch.Tensor,
        extra: torch.Tensor | None = None,
        power: int = 2,
        *,
        double: bool = False,
    ) -> torch.Tensor:
        hidden = self.left(left).relu() + self.right(right).tanh() ** power
        if extra is not None:
            hidden = hidden + self.right(extra)
        return self.last(hidden * 2 if double else hidden)


def test_positional_arguments() -> None:
    result = pruned(Two(), (vector(), vector()))
    assert result(vector(5), vector(5)).shape == (5, 4)


def test_keyword_arguments_keep_their_names() -> None:
    result = pruned(Two(), {"right": vector(), "left": vector()})
    left, right = vector(3), vector(3)
    assert torch.equal(result(left=left, right=right), result(right=right, left=left))


def test_an_optional_tensor_that_is_given() -> None:
    model = Two()
    result = pruned(model, {"left": vector(), "right": vector(), "extra": vector()})
    assert result(vector(3), vector(3), vector(3)).shape == (3, 4)


def test_an_optional_tensor_that_is_none() -> None:
    model = Two().eval()
    left, right = vector(), vector()
    result = assert_equal_copy(model, (left, right, None))
    assert torch.equal(result(left, right, None), model(left, right))


@pytest.mark.parametrize("power", [2, 3])
@pytest.mark.parametrize("double", [False, True])
def test_python_arguments_are_those_of_the_sample(power: int, double: bool) -> None:
    model = Two().eval()
    left, right = vector(), vector()
    result = assert_equal_copy(model, {"left": left, "right": right, "power": power, "double": double})
    expected = model(left, right, None, power, double=double)
    assert torch.allclose(result(left, right, power=power, double=double), expected)


class Nested(nn.Module):
    """Takes a list and a dict of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, features: list[torch.Tensor], options: dict[str, Any]) -> torch.Tensor:
        total = self.left(features[0])
        for feature in features[1:]:
            total = total + self.left(feature)
        first, second = options["pair"]
        return self.last(total.relu() + self.right(first) * self.right(second))


def nested(batch: int) -> tuple[list[torch.Tensor], dict[str, Any]]:
    return [vector(batch), vector(batch), vector(batch)], {"pair": (vector(batch), vector(batch)), "name": "x"}


def test_lists_dicts_and_tuples_of_tensors() -> None:
    result = pruned(Nested(), nested(2))
    assert result(*nested(5)).shape == (5, 4)
    assert_equal_copy(Nested(), nested(2), nested(4))


def test_a_list_is_one_argument() -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lateral, self.last = nn.Linear(8, 12), nn.Linear(12, 4)

        def forward(self, levels: list[torch.Tensor]) -> list[torch.Tensor]:
            return [self.last(self.lateral(level).relu()) for level in levels]

    result = pruned(Pyramid(), [vector(), vector()])
    assert [tuple(out.shape) for out in result([vector(3), vector(3)])] == [(3, 4), (3, 4)]


Batch = namedtuple("Batch", ["pixels", "mask"])


def test_a_named_tuple_is_one_argument() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 12), nn.Linear(12, 4)

        def forward(self, batch: Batch) -> torch.Tensor:
            return self.last(self.first(batch.pixels * batch.mask).relu())

    result = pruned(Masked(), Batch(vector(), torch.ones(2, 1)))
    assert result(Batch(vector(3), torch.ones(3, 1))).shape == (3, 4)


class Starred(nn.Module):
    """Everything goes through ``*args`` and ``**kwargs``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, *xs: torch.Tensor, scale: float = 1.0, **others: torch.Tensor) -> torch.Tensor:
        total = sum(self.first(x) for x in xs) * scale
        for name in sorted(others):
            total = total + self.first(others[name])
        return self.last(total.relu())


def test_starred_positional_arguments() -> None:
    result = pruned(Starred(), (vector(), vector(), vector()))
    assert result(vector(3), vector(3), vector(3)).shape == (3, 4)


def test_starred_keyword_arguments() -> None:
    sample = {"a": vector(), "b": vector(), "scale": 0.5}
    result = pruned(Starred(), sample)
    assert result(a=vector(3), b=vector(3), scale=0.5).shape == (3, 4)


class Wrapper(nn.Module):
    """Passes everything on."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


def test_a_wrapper_that_passes_everything_on() -> None:
    result = pruned(Wrapper(Two()), {"left": vector(), "right": vector(), "power": 3})
    assert result(left=vector(3), right=vector(3), power=3).shape == (3, 4)
    result = pruned(Wrapper(Wrapper(Two())), (vector(), vector()))
    assert result(vector(3), vector(3)).shape == (3, 4)


def test_the_same_tensor_given_twice() -> None:
    x = vector()
    pruned(Two(), (x, x))


def test_tensors_without_a_common_batch() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 12), nn.Linear(12, 4)

        def forward(self, x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x).relu()) @ table

    pruned(Table(), (vector(2), torch.randn(4, 7)))


def test_a_scalar_tensor_beside_the_batch() -> None:
    class Diffused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 12), nn.Linear(12, 4)

        def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x).relu() * time.cos())

    result = pruned(Diffused(), (vector(), torch.tensor(3.0)))
    assert result(vector(5), torch.tensor(1.0)).shape == (5, 4)


def test_integer_inputs() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.first, self.last = nn.Embedding(11, 12), nn.Linear(12, 16), nn.Linear(16, 4)

        def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            hidden = self.first(self.embedding(tokens)).relu()
            return self.last((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))

    tokens, mask = torch.randint(0, 11, (2, 5)), torch.ones(2, 5, dtype=torch.int64)
    result = pruned(Text(), {"tokens": tokens, "mask": mask})
    assert result(tokens=torch.randint(0, 11, (3, 7)), mask=torch.ones(3, 7, dtype=torch.int64)).shape == (3, 4)


def test_a_wrong_number_of_arguments() -> None:
    with pytest.raises(SampleError, match="missing .*'right'"):
        fxprune.compile(Two(), vector(), 0.3)
    with pytest.raises(SampleError, match="unexpected keyword argument 'middle'"):
        fxprune.compile(Two(), {"left": vector(), "right": vector(), "middle": vector()}, 0.3)


@pytest.mark.parametrize(
    "middle",
    [
        lambda h: torch.cat(torch.chunk(x=h, chunks=2, axis=1)[::-1], 1),
        lambda h: torch.cat(torch.split(tensor=h, split_size_or_sections=4, dim=1)[::-1], 1),
        lambda h: h.view(h.size(axis=0), h.size(axis=1), 1).sum(axis=-1) + torch.relu_(input=h.clone()),
        lambda h: torch.add(a=h, x2=torch.neg_(x=h.sigmoid())),
    ],
    ids=["chunk", "split", "size", "in place"],
)
def test_arguments_under_any_name_that_torch_takes(middle: Callable[[Tensor], Tensor]) -> None:
    width = middle(torch.ones(2, 8)).shape[1]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 8), nn.Linear(width, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(middle(self.first(x)))

    pruned = fxprune.compile(Net().eval(), torch.randn(2, 5), 0.5)
    assert pruned.get_parameter("first.weight").shape[0] < 8
    pruned(torch.randn(7, 5))


class Optional(nn.Module):
    """Takes two arguments that it may do without."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor, mask: Any = None, shift: Any = None) -> torch.Tensor:
        h = self.first(x).relu()
        h = h if mask is None else h * mask
        out: torch.Tensor = self.last(h if shift is None else h + shift)
        return out


def test_an_argument_that_the_sample_leaves_out_keeps_its_place() -> None:
    model, x, other = Optional().eval(), torch.randn(2, 4), torch.randn(2, 1)
    pruned = fxprune.compile(model, {"x": x, "shift": other}, 0.0)
    torch.testing.assert_close(pruned(x, shift=other), model(x, shift=other))
    torch.testing.assert_close(pruned(x, None, other), model(x, None, other))
    with pytest.raises(AssertionError, match="mask = None, as in the sample"):
        pruned(x, other, other)


class Flagged(nn.Module):
    """Takes a flag, and a tensor by its name alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor, flag: bool = True, *, shift: Any = None) -> torch.Tensor:
        h = self.first(x).relu() * (2 if flag else 1)
        out: torch.Tensor = self.last(h if shift is None else h + shift)
        return out


def test_arguments_equal_to_their_defaults_may_be_left_out() -> None:
    model, x, shift = Flagged().eval(), torch.randn(2, 4), torch.randn(2, 1)
    pruned = fxprune.compile(model, (x, True), 0.0)
    torch.testing.assert_close(pruned(x), model(x))
    with pytest.raises(AssertionError, match="flag = True, as in the sample"):
        pruned(x, False)
    pruned = fxprune.compile(model, {"x": x, "shift": shift}, 0.0)
    torch.testing.assert_close(pruned(x, shift=shift), model(x, shift=shift))
    with pytest.raises(AssertionError, match="flag = True, as in the sample"):
        pruned(x, False, shift=shift)
    with pytest.raises(AssertionError, match="calls with shift, as in the sample"):
        pruned(x)


def test_another_number_of_arguments_is_refused_in_words() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, *given: torch.Tensor) -> torch.Tensor:
            return self.last(sum(map(self.first, given)))

    result = fxprune.compile(Many(), (torch.randn(2, 8), torch.randn(2, 8)), 0.3)
    for count in (1, 3):
        with pytest.raises(AssertionError, match="with 2 entries, as in the sample"):
            result(*[torch.randn(2, 8)] * count)
