"""Choosing criteria, and checking what they return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fxprune
from fxprune.analysis.groups import Group
from fxprune.criteria import Magnitude, Random, criterion_by_name, known_criteria, resolve_criterion, score_groups
from fxprune.errors import CriterionError
from tests.planning import graphs

NAMES = """
    apoz chip feature_distance feature_entropy filter_similarity fpgm hessian hrank information_fusion lamp magnitude
    mean_activation multi_source parallel random reconstruction slimming taylor taylor_activations thinet
""".split()


class Constant:
    """A user's own criterion."""

    name = "constant"

    def __init__(self, value: Any) -> None:
        self.value = value

    def score(self, group: Group, tensors: Mapping[str, Tensor], graph: Any) -> Any:
        return self.value


def test_by_name() -> None:
    assert known_criteria() == fxprune.known_criteria() == sorted(NAMES)
    assert criterion_by_name("magnitude", p=1) == Magnitude(p=1)
    assert resolve_criterion("random", seed=7) == Random(7)
    own = Constant(1)
    assert resolve_criterion(own) is own


def test_unknown() -> None:
    with pytest.raises(CriterionError, match="unknown criterion 'magnitud'; choose one of apoz, .*, magnitude, "):
        criterion_by_name("magnitud")
    with pytest.raises(CriterionError, match="cannot be built"):
        criterion_by_name("magnitude", power=3)
    for wrong in (3, None, Magnitude, object()):
        with pytest.raises(CriterionError, match="must be a name"):
            resolve_criterion(wrong)  # type: ignore[arg-type]


def test_random_is_seeded_and_each_group_has_its_own_stream() -> None:
    graph = graphs.chain(5, 5)
    tensors = {n: torch.zeros(s) for n, s in graph.shapes.items()}
    first, again, other = (score_groups(Random(seed), graph, tensors) for seed in (0, 0, 1))
    assert first is not None
    assert again is not None
    assert other is not None
    a, b = graph.groups
    np.testing.assert_array_equal(first[a], again[a])
    assert not np.array_equal(first[a], other[a])
    assert not np.array_equal(first[a], first[b])


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.zeros(4), r"shape \(4,\) for group 'c0'"),
        (0.0, r"shape \(\) for group 'c0'"),
        (np.array([0, 0, np.nan, 0, np.inf]), r"nan for channel 2 of group 'c0' \(2 of 5"),
    ],
)
def test_scores_are_checked(value: Any, says: str) -> None:
    graph = graphs.chain(5)
    tensors = {n: torch.zeros(s) for n, s in graph.shapes.items()}
    with pytest.raises(CriterionError, match=says):
        score_groups(Constant(value), graph, tensors)


def test_a_network_without_weights_has_no_scores() -> None:
    graph = graphs.chain(5)
    tensors = {n: torch.zeros(s, device="meta") for n, s in graph.shapes.items()}
    assert score_groups(Magnitude(), graph, tensors) is None
