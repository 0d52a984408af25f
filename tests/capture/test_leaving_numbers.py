"""Every way for a size to become a plain number: the result is the original's at other sizes, or it refuses them."""

from __future__ import annotations

import bisect
import copy
import fractions
import itertools
import math
import operator
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import CaptureError
from tests.capture.helper_of_sizes import half_of

_TABLE = list(range(1, 100))
_BY_SIZE = {2: 5, 3: 7}


class Int(int):
    """An int of a class of its own."""


def matched(n: int) -> int:
    match n:
        case 2:
            return 5
        case _:
            return n


def of_list(n: int) -> int:
    grown: list[int] = []
    while len(grown) < n:
        grown.append(1)
    return sum(grown)


def caught(n: int) -> int:
    try:
        return _TABLE[:2][n - 2]
    except IndexError:
        return 9


def failing(call: Callable[[int], Any]) -> Callable[[int], int]:
    """Whether a call fails, as the forward that catches its error finds out."""

    def caught(n: int) -> int:
        try:
            call(n)
        except (ArithmeticError, RuntimeError, ValueError, IndexError):
            return 9
        return 4

    return caught


def written(n: int) -> int:
    made = bytearray(8)
    made[n % 8] = 1
    return made.index(1)


def of_kind(n: Any) -> int:
    return n * 2 if isinstance(n, int) and not isinstance(n, bool) else 100


def of_math(n: int) -> float:
    import math

    return math.sqrt(n) + math.floor(n / 2)


def of_names_of_math(n: int) -> float:
    from math import log2, sqrt

    return sqrt(n) + log2(n) + 1


def of_numpy(n: int) -> int:
    import numpy as short

    return int(short.prod((n, 3)) + short.ceil(n / 2))


def of_a_package(n: int) -> int:
    import os.path

    import torch.autograd

    return n + len(os.path.sep) * torch.Size((1, 1)).numel()


def of_identity(n: int) -> int:
    inner = [k is not 3 for k in (n, n + 1)]  # noqa: F632
    return 5 if n is 2 else 7 + sum(inner)  # noqa: F632


# Of a size, to a number that the forward multiplies with.
OF_SIZES: dict[str, Callable[[Any], Any]] = {
    "and": lambda n: (n & 2) + 1,
    "and, swapped": lambda n: (6 & n) + 1,
    "or": lambda n: n | 4,
    "xor": lambda n: (n ^ 1) + 1,
    "shift left": lambda n: n << 1,
    "shift right": lambda n: (n >> 1) + 1,
    "shift by it": lambda n: 1 << (n % 8),
    "not": lambda n: -~n,
    "divmod": lambda n: sum(divmod(n, 3)) + 1,
    "divmod, swapped": lambda n: sum(divmod(20, n)),
    "pow": lambda n: n**2,
    "pow of two": lambda n: 2 ** (n % 5),
    "pow with a modulus": lambda n: pow(3, n, 7),
    "pow of it with a modulus": lambda n: pow(n, 2, 7) + 1,
    "true division": lambda n: n / 4,
    "floor division": lambda n: n // 2 + 1,
    "negative floor division": lambda n: -(-n // 4),
    "remainder": lambda n: n % 5 + 1,
    "round": lambda n: round(n / 3) + 1,
    "round to tens": lambda n: round(n, -1) + 1,
    "int of a float": lambda n: int(n * 0.6) + 1,
    "int": lambda n: int(n),
    "float": lambda n: float(n),
    "bool": lambda n: 1 + bool(n - 2),
    "complex": lambda n: abs(complex(n, 1)),
    "trunc": lambda n: math.trunc(n / 2) + 1,
    "index": lambda n: operator.index(n),
    "bit_length": lambda n: n.bit_length(),
    "bit_count": lambda n: n.bit_count(),
    "to_bytes": lambda n: n.to_bytes(2, "big")[1],
    "as_integer_ratio": lambda n: n.as_integer_ratio()[0],
    "is_integer": lambda n: 1 + (n / 4).is_integer(),
    "numerator": lambda n: n.numerator,
    "real and imag": lambda n: n.real + n.imag,
    "conjugate": lambda n: n.conjugate(),
    "str": lambda n: len("a" * len(str(n * 7))),
    "repr": lambda n: int(repr(n)),
    "format": lambda n: int(format(n, "d")),
    "an f-string": lambda n: int(f"{n:03d}"),
    "%": lambda n: int("%d" % n),  # noqa: UP031
    "% s": lambda n: int("%s" % n),  # noqa: UP031
    "hex": lambda n: int(hex(n), 16),
    "bin": lambda n: bin(n).count("1"),
    "chr": lambda n: ord(chr(n + 40)),
    "hash": lambda n: hash(n) + 1,
    "hash of a tuple": lambda n: 1 + (hash((n, 1)) == hash((2, 1))),
    "np.sqrt": lambda n: np.sqrt(n),
    "np.log2": lambda n: float(np.log2(n)) + 1,
    "np.gcd": lambda n: np.gcd(n, 12),
    "np.array": lambda n: np.array([n, 2]).sum(),
    "np.int64": lambda n: np.int64(n) * 2,
    "np.float32": lambda n: float(np.float32(n)),
    "np.arange": lambda n: int(np.arange(n).sum()) + 1,
    "np.zeros": lambda n: np.zeros(n).size,
    "np.ones of the shape": lambda n: int(np.ones((n, 2)).sum()),
    "np.linspace": lambda n: float(np.linspace(0, 1, n + 1)[1]),
    "np.prod": lambda n: np.prod((n, 3)),
    "np.maximum": lambda n: np.maximum(n, 3),
    "np.ceil": lambda n: np.ceil(n / 2),
    "np.clip": lambda n: np.clip(n, 2, 4),
    "np.asarray times": lambda n: int((np.arange(3) * n)[1]),
    "np integer times": lambda n: np.int64(3) * n,
    "math.gcd": lambda n: math.gcd(n, 12),
    "math.lcm": lambda n: math.lcm(n, 4),
    "math.isqrt": lambda n: math.isqrt(n) + 1,
    "math.sqrt": lambda n: math.sqrt(n),
    "math.log2": lambda n: math.log2(n) + 1,
    "math.log": lambda n: math.log(n, 2) + 1,
    "math.comb": lambda n: math.comb(n + 2, 2),
    "math.factorial": lambda n: math.factorial(n % 6) % 7 + 1,
    "math.prod": lambda n: math.prod((n, 2)),
    "math.hypot": lambda n: math.hypot(n, 1),
    "math.fmod": lambda n: math.fmod(n, 5) + 1,
    "math.copysign": lambda n: math.copysign(n, 1),
    "math.floor": lambda n: math.floor(n / 2) + 1,
    "math.ceil": lambda n: math.ceil(n / 2),
    "math.frexp": lambda n: math.frexp(n)[0],
    "math.isclose": lambda n: 1 + math.isclose(n, 2),
    "a list's index": lambda n: _TABLE[n],
    "a tuple's index": lambda n: tuple(_TABLE)[n - 1],
    "a string's index": lambda n: int("1234567890123456789"[n]) + 1,
    "bytes": lambda n: bytes(range(50))[n],
    "bytes as long": lambda n: len(bytes(n)),
    "bytearray": written,
    "memoryview": lambda n: memoryview(bytes(range(60)))[n],
    "a range's index": lambda n: range(1, 50)[n],
    "a slice of a list": lambda n: len(_TABLE[:n]),
    "a slice from": lambda n: sum(_TABLE[n : n + 3]),
    "a slice's step": lambda n: len(_TABLE[::n]),
    "slice.indices": lambda n: slice(None, 40).indices(n)[1],
    "islice": lambda n: sum(itertools.islice(_TABLE, n)),
    "islice of count": lambda n: next(itertools.islice(itertools.count(1), n, None)),
    "repeat": lambda n: len(list(itertools.repeat(1, n))),
    "zip with range": lambda n: len(list(zip(range(n), _TABLE))),  # noqa: B905
    "enumerate from": lambda n: next(enumerate(_TABLE, n))[0],
    "range": lambda n: len(range(n)),
    "a sum over range": lambda n: sum(i for i in range(n)) + 1,
    "a list as often": lambda n: len([0] * n),
    "a tuple as often": lambda n: len((0,) * n),
    "a string as often": lambda n: len("ab" * n),
    "while": of_list,
    "sorted": lambda n: sorted([n, 3, 8])[1],
    "sorted by a key": lambda n: sorted([1, 4, 9], key=lambda k: abs(k - n))[0],
    "min by a key": lambda n: min([1, 4, 9], key=lambda k: abs(k - n)),
    "max": lambda n: max(n, 3),
    "max of a list": lambda n: max([n, 3]),
    "sum": lambda n: sum([n, 3]),
    "any": lambda n: 1 + any([n - 2, 0]),
    "a set": lambda n: 1 + (n in {2, 5}),
    "a set of them": lambda n: len({n, 2, 3}),
    "a frozenset": lambda n: 1 + ({n} <= frozenset({2, 5})),
    "a dict": lambda n: _BY_SIZE.get(n, 1),
    "a dict's key": lambda n: next(iter({n: 1})),
    "in a tuple": lambda n: 1 + (n in (2, 5)),
    "list.index": lambda n: _TABLE.index(n) + 1,
    "list.count": lambda n: _TABLE[:4].count(n) + 1,
    "bisect": lambda n: bisect.bisect([1, 2, 4, 8], n) + 1,
    "match": matched,
    "is": lambda n: 1 + (n is None),
    "a conditional": lambda n: 3 if n > 2 else 4,
    "not it": lambda n: 1 + (not n - 2),
    "an exception": caught,
    "a division that fails": failing(lambda n: 6 // (n // 4)),
    "a division that would fail": failing(lambda n: 6 // (n - 5)),
    "a view that would fail": failing(lambda n: torch.zeros(n, 2).view(-1, 2 + n % 2)),
    "a root that fails": failing(lambda n: math.sqrt(n - 4)),
    "a view that fails": failing(lambda n: torch.zeros(n).view(-1, 4)),
    "an expansion that fails": failing(lambda n: torch.zeros(n).expand(5)),
    "Fraction": lambda n: float(fractions.Fraction(n, 3)),
    "Fraction times": lambda n: float(n * fractions.Fraction(1, 3)),
    "int.__add__": lambda n: int.__add__(2, n) if type(n) is int else 2 + n,
    "a class of ints": lambda n: Int(n) + 1,
    "isinstance": of_kind,
    "struct": lambda n: struct.pack("<H", n)[0],
    "a helper elsewhere": half_of,
    "torch.Size": lambda n: torch.Size((n, 3)).numel(),
    "torch.Size, cut": lambda n: torch.Size((4, n, 3))[1:].numel(),
    "torch.tensor": lambda n: torch.tensor(n).item() + 1,
    "torch.tensor of a list": lambda n: torch.tensor([n, 2]).sum().item(),
    "torch.arange": lambda n: torch.arange(n).sum().item() + 1,
    "torch.zeros": lambda n: len(torch.zeros(n)),
    "torch.ones": lambda n: torch.ones(n, 3).shape.numel(),
    "tolist": lambda n: torch.tensor([n, 2]).tolist()[0],
    "numpy of a tensor": lambda n: int(torch.arange(n).numpy().sum()) + 1,
    "int of a tensor": lambda n: int(torch.tensor(n)),
    "a tensor's truth": lambda n: 1 + bool(torch.tensor(n) > 2),
    "a tensor as an index": lambda n: _TABLE[torch.tensor(n)],
    "a tensor's rows": lambda n: sum(1 for _ in torch.zeros(n, 1)),
    "deepcopy": lambda n: copy.deepcopy(n) + 1,
    "is a number": of_identity,
    "math, imported there": of_math,
    "names of math, imported there": of_names_of_math,
    "numpy, imported there": of_numpy,
    "a package, imported there": of_a_package,
}


class Multiplied(nn.Module):
    """Two convolutions, and a number in between that comes of the batch, or of the height."""

    def __init__(self, number: Callable[[Any], Any], dim: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.number, self.dim = number, dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        number = self.number(x.shape[self.dim])
        return self.last(self.first(x).relu() * number)


def assert_right_or_refused(model: nn.Module, sample: torch.Tensor, others: list[torch.Tensor]) -> int:
    """Compile, and compare with the original; how many of the others are refused, with the line."""
    result, refusal = attempt(lambda: fxprune.compile(model.eval(), sample, 0.0, verify=False), CaptureError)
    assert refusal == "" or ".py:" in refusal
    if refusal:
        return len(others)
    torch.testing.assert_close(result(sample), model(sample))
    refused = 0
    for x in others:
        found, refusal = attempt(lambda x=x: result(x), AssertionError)
        refused += bool(refusal)
        if refusal:
            assert re.search(r"made for inputs of other sizes: the way that .*\.py:\d+ took", refusal)
        else:
            torch.testing.assert_close(found, model(x))
    return refused


def attempt(function: Callable[[], Any], refusal: type[Exception]) -> tuple[Any, str]:
    """What a function gives, or how it refuses."""
    try:
        return function(), ""
    except refusal as error:
        return None, str(error)


@pytest.mark.parametrize("name", OF_SIZES)
def test_a_number_that_comes_of_a_size(name: str) -> None:
    batches = [torch.randn(n, 3, 2, 2) for n in (1, 2, 3, 5, 12, 17)]
    refused = assert_right_or_refused(Multiplied(OF_SIZES[name], 0), batches.pop(1), batches)
    heights = [torch.randn(2, 3, n, 2) for n in (1, 2, 3, 5, 12, 17)]
    refused += assert_right_or_refused(Multiplied(OF_SIZES[name], 2), heights.pop(2), heights)
    assert not (refused and name in FUNCTIONS)


# What stays a function of the size.
FUNCTIONS = """and|and, swapped|or|xor|shift left|shift right|shift by it|not|divmod|divmod, swapped|pow|pow of two
true division|floor division|negative floor division|remainder|round|round to tens|int of a float|int|float|trunc
numerator|real and imag|np.prod|math.sqrt|math.log2|math.prod|math.floor|math.ceil|max|sum|isinstance
deepcopy|math, imported there
names of math, imported there|numpy, imported there|a package, imported there""".replace("\n", "|").split("|")


def test_the_first_argument_by_keyword() -> None:
    class Swapped(Multiplied):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, second = torch.chunk(input=self.first(x), chunks=2, dim=1)
            second = torch.where(condition=second > 0, input=second, other=first)
            return self.last(torch.cat([second, torch.relu(input=first)], 1))

    others = [torch.randn(3, 3, 4, 5)]
    assert assert_right_or_refused(Swapped(len, 0), torch.randn(2, 3, 2, 2), others) == 0
