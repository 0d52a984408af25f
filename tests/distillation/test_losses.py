"""The default loss against worked numbers and against torch's own pieces."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fxprune.distillation import SoftTargets
from fxprune.errors import DistillationError


def test_a_student_that_equals_its_teacher_loses_nothing() -> None:
    logits = torch.randn(6, 4)
    assert SoftTargets()(logits, logits.clone(), None) == {"soft": 0.0}


def test_worked_number() -> None:
    # softmax of (0, ln 3) is (1/4, 3/4), of (0, 0) is (1/2, 1/2); at T = 2 the logits below are halved to these.
    teacher, student = torch.tensor([[0.0, 2 * math.log(3)]]), torch.zeros(1, 2)
    divergence = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    found = SoftTargets(temperature=2, labels=0.25)(student, teacher, torch.tensor([1]))
    assert found["soft"].item() == pytest.approx(0.75 * 4 * divergence, rel=1e-6)
    assert found["labels"].item() == pytest.approx(0.25 * math.log(2), rel=1e-6)


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 4, 6), (3, 5, 7)])
def test_pixels_are_averaged(shape: tuple[int, ...]) -> None:
    student, teacher = torch.randn(shape), torch.randn(shape)
    labels = torch.randint(0, 5, (shape[0], *shape[2:]))
    found = SoftTargets(temperature=3, labels=0.5)(student, teacher, labels)
    rows = [t.movedim(1, -1).reshape(-1, 5) for t in (student, teacher)]
    soft = F.kl_div(F.log_softmax(rows[0] / 3, 1), F.softmax(rows[1] / 3, 1), reduction="batchmean")
    torch.testing.assert_close(found["soft"], 0.5 * 9 * soft)
    torch.testing.assert_close(found["labels"], 0.5 * F.cross_entropy(rows[0], labels.reshape(-1)))


def test_classes_may_be_last() -> None:
    student, teacher = torch.randn(2, 7, 5), torch.randn(2, 7, 5)
    last = SoftTargets(class_dim=-1)(student, teacher, torch.ones(2, 7, dtype=torch.long))
    second = SoftTargets()(student.mT, teacher.mT, torch.ones(2, 7, dtype=torch.long))
    torch.testing.assert_close(last, second)


def test_outputs_by_name_and_what_the_teacher_does_not_give() -> None:
    maps = {"out": torch.randn(2, 3, 4, 4), "aux": torch.randn(2, 3, 4, 4, requires_grad=True)}
    teacher = {"out": torch.randn(2, 3, 4, 4)}
    labels = torch.randint(0, 3, (2, 4, 4))
    labels[0, 0] = 255
    loss = SoftTargets(labels=0.5, ignore_index=255)
    found = loss(maps, teacher, labels)
    torch.testing.assert_close(
        found["soft"], loss(maps["out"], teacher["out"], None if loss.labels is None else labels)["soft"]
    )
    out, aux = (F.cross_entropy(m, labels, ignore_index=255) for m in maps.values())
    torch.testing.assert_close(found["labels"], 0.5 * (out + 0.5 * aux))
    sum(found.values()).backward()
    assert maps["aux"].grad is not None


def test_a_tuple_of_outputs_against_a_single_one() -> None:
    first, further = torch.randn(2, 3), torch.randn(2, 3)
    found = SoftTargets()((first, further), first, None)
    assert found["soft"] == 0


def test_labels_count_a_tenth_where_there_are_some() -> None:
    student, teacher, labels = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(
        SoftTargets()(student, teacher, labels), SoftTargets(labels=0.1)(student, teacher, labels)
    )
    assert SoftTargets()(student, teacher, None).keys() == {"soft"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.randn(2, 3), torch.randn(2, 4), None), r"shape \(2, 3\)"),
        ((torch.randn(2, 3), torch.randn(2, 3), torch.zeros(3, dtype=torch.long)), "class indices"),
        (("text", torch.randn(2, 3), None), "pass loss="),
    ],
)
def test_outputs_that_do_not_fit_are_refused(arguments: tuple[object, ...], words: str) -> None:
    with pytest.raises(DistillationError, match=words):
        SoftTargets()(*arguments)


def test_missing_labels_and_senseless_values() -> None:
    with pytest.raises(DistillationError, match="gives none"):
        SoftTargets(labels=0.5)(torch.randn(2, 3), torch.randn(2, 3), None)
    for options in ({"temperature": 0}, {"labels": 2}, {"further": -1}):
        with pytest.raises(DistillationError):
            SoftTargets(**options)  # type: ignore[arg-type]
