"""Texts that only tell people something: a size in one decides nothing, and a size in any other text does."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fxprune.capture import sources
from tests.capture.test_leaving_numbers import Multiplied, assert_right_or_refused

_LOG = logging.getLogger(__name__)
_KEPT: list[str] = []


def keep(text: Any) -> str:
    _KEPT.append(str(text))
    return _KEPT[-1]


class Keeping:
    """Has an own idea of what adding a text means."""

    def __radd__(self, text: str) -> str:
        return keep(text)

    def __format__(self, spec: str) -> str:
        return keep(spec)

    __getitem__ = __mod__ = __radd__


KEEPING = Keeping()


def asserting(n: int) -> int:
    torch._assert(n >= 1, f"Wrong height! Expected {7} but got {n}!")
    return 2


def asserting_in_lines(n: int) -> int:
    torch._assert(
        abs(n) >= 1,
        f"Wrong height! got {n} of {(n, n + 1)}",
    )
    return 2


def warning(n: int) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.warn("a size of {} and {!r}".format(n, [n]), stacklevel=2)  # noqa: UP032
        warnings.warn(message="a size of %d" % n, stacklevel=2)  # noqa: UP031
    return 2


def logging_it(n: int) -> int:
    _LOG.debug(f"{n=}")
    _LOG.debug("size " + str(n))
    return 2


def printing(n: int) -> int:
    print(n, f"{n:03d}")
    return 2


def shapes(n: int) -> int:
    shape = torch.Size((n, 2))
    torch._assert(n > 0, f"of shape {shape} or {[*shape]}")
    return 2


# What these give is the same for every size.
MESSAGES = [asserting, asserting_in_lines, warning, logging_it, printing, shapes]


def beside(n: int) -> int:
    return [print("x"), int(f"{n}")][1]


def through_a_helper(n: int) -> int:
    torch._assert(n > 0, f"got {keep(f'{n}')}")
    return int(_KEPT.pop())


def through_an_operator(n: int) -> int:
    torch._assert(n > 0, f"{n}" + KEEPING)
    return int(_KEPT.pop())


def through_a_format(n: int) -> int:
    torch._assert(n > 0, f"{KEEPING:{n}}")
    return int(_KEPT.pop())


def through_an_index(n: int) -> int:
    torch._assert(n > 0, KEEPING[str(n)])
    return int(_KEPT.pop())


def through_a_name(n: int) -> int:
    torch._assert(n > 0, (text := f"{n}"))
    return int(text)


def through_a_variable(n: int) -> int:
    text = f"{n}"
    torch._assert(n > 0, text)
    return int(text)


def through_a_name_of_its_own(n: int) -> int:
    def print(*texts: str) -> int:  # noqa: A001
        return int(texts[0])

    return print(f"{n}")


def to_a_file(n: int) -> int:
    print(f"{n}", file=_File())
    return int("".join(_KEPT).strip() or 0) + _KEPT.clear().__class__.__name__.count("?")


class _File:
    def write(self, text: str) -> None:
        keep(text)


def by_a_condition(n: int) -> int:
    print(f"{1 if str(n) == '2' else keep(n)}")
    return 2


TEXTS = [
    beside,
    through_a_helper,
    through_an_operator,
    through_a_format,
    through_an_index,
    through_a_name,
    through_a_variable,
    through_a_name_of_its_own,
    to_a_file,
    by_a_condition,
]


@pytest.fixture(params=["by position", "by line"])
def spans(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "by line":
        monkeypatch.setattr(sources, "_span", lambda code, at: None)
    return request.param


def refused(function: Callable[[int], Any], batches: tuple[int, ...] = (3, 5, 12)) -> int:
    _KEPT.clear()
    others = [torch.randn(n, 3, 2, 2) for n in batches]
    return assert_right_or_refused(Multiplied(function, 0), torch.randn(2, 3, 2, 2), others)


@pytest.mark.parametrize("function", MESSAGES, ids=lambda f: f.__name__)
def test_a_message_decides_nothing(function: Callable[[int], Any], spans: str) -> None:
    # By line alone, `abs(n)` and the message cannot be told apart where they share one.
    assert refused(function) == 0


def test_a_message_beside_a_call_in_its_line() -> None:
    def asserting(n: int) -> int:
        torch._assert(abs(n) >= 1, f"Wrong height! got {n} of {(n, n + 1)}")
        return 2

    assert refused(asserting) == 0


@pytest.mark.parametrize("function", TEXTS, ids=lambda f: f.__name__)
def test_a_text_that_is_not_a_message_decides(function: Callable[[int], Any], spans: str) -> None:
    assert refused(function) == 3
