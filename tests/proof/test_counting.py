"""Questions and counts over removed entries give what they give without them; worked numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fxprune.proof.nan_carrying import NanCarrying

NAN = float("nan")
# The middle column is removed: left are (1, 2), (-1, 3), (0, -4).
VALUES = torch.tensor([[1.0, NAN, 2.0], [-1.0, NAN, 3.0], [0.0, NAN, -4.0]], dtype=torch.float64)

CASES: list[tuple[Callable[[Tensor], Tensor], list[object] | object]] = [
    (lambda h: (h > -2).all(1), [True, True, False]),
    (lambda h: torch.all(h > -2), False),
    (lambda h: (h > -9).all(), True),
    (lambda h: (h > 1).any(1), [True, True, False]),
    (lambda h: (~(h > -9)).any(1), [False, False, False]),
    (lambda h: (h <= 9).all(1, keepdim=True).squeeze(1), [True, True, True]),
    (lambda h: torch.logical_not(h > 0).sum(1), [0, 1, 2]),
    (lambda h: (h > -9).long().prod(1), [1, 1, 1]),
    (lambda h: torch.count_nonzero(h, 1), [2, 2, 1]),
    (lambda h: torch.count_nonzero(h > 0), 3),
    (lambda h: (h > -9).to(torch.int64).sum(), 6),
    (lambda h: h.long().all(1), [True, True, False]),
    (lambda h: h.all(1), [True, True, False]),
]


@pytest.mark.parametrize(("question", "answer"), CASES)
def test_removed_entries_do_not_count(question: Callable[[Tensor], Tensor], answer: object) -> None:
    with NanCarrying():
        found = question(VALUES)
    assert found.tolist() == answer


def test_an_answer_over_nothing_is_removed_with_it() -> None:
    with NanCarrying():
        answers = (VALUES > 0).all(0).to(torch.float64)
        counts = (VALUES > 0).sum(0).to(torch.float64)
    assert torch.equal(torch.isnan(answers), torch.tensor([False, True, False]))
    assert torch.equal(torch.isnan(counts), torch.tensor([False, True, False]))
    assert counts[[0, 2]].tolist() == [1.0, 2.0]
