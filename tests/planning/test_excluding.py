"""Patterns of ``exclude``."""

from __future__ import annotations

import pytest

from fxprune.errors import ExcludeError
from fxprune.planning.limits import excluded_groups
from tests.planning import graphs
from tests.planning.graphs import HandGraph


def names(graph: HandGraph, *patterns: str) -> set[str]:
    return {group.name for group in excluded_groups(graph, patterns)}


def test_a_module_keeps_its_outputs_not_its_inputs() -> None:
    graph = graphs.chain(4, 5, 6)
    assert names(graph, "conv1") == {"c1"}
    assert names(graph, "conv1.weight") == {"c1"}
    assert names(graph, "conv[02]") == {"c0", "c2"}
    assert names(graph, "fc") == set()


def test_a_module_covers_what_is_below_it() -> None:
    graph = graphs.residual(blocks=3)
    assert names(graph, "blocks.1") == {"stream", "block1"}
    assert names(graph, "blocks.*.conv1") == {"block0", "block1", "block2"}
    assert names(graph, "blocks") == {"stream", "block0", "block1", "block2"}


def test_bare_parameters_and_norms() -> None:
    graph = graphs.attention()
    assert names(graph, "position") == {"stream"}
    assert names(graph, "qkv") == {"heads", "head_dim"}
    assert names(graph, "norm") == {"stream"}
    assert names(graph) == set()


@pytest.mark.parametrize("pattern", ["", "conv9", "Conv0", "conv0.weigh", "relu"])
def test_a_pattern_that_matches_nothing(pattern: str) -> None:
    with pytest.raises(ExcludeError, match="matches no parameter"):
        names(graphs.chain(4), pattern)


def test_one_string_is_no_list() -> None:
    with pytest.raises(ExcludeError, match=r"exclude=\['conv0'\]"):
        excluded_groups(graphs.chain(4), "conv0")
    with pytest.raises(ExcludeError, match="strings"):
        excluded_groups(graphs.chain(4), [3])  # type: ignore[list-item]
